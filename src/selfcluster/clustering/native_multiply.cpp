// Products of rounded rows with a panel of rounded centroids: AVX512-VNNI in registers, AMX in tiles.

#include "native.hpp"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace selfcluster {

VECTOR_CODE

// (6, 64) products in registers.
void multiply_vnni(const uint8_t* a, const Centroids& c, int64_t panel, int32_t* product) {
    const int8_t* b = c.packed.data + panel * PANEL * c.p;
    const int64_t group = TILE * c.p;
    __m512i sum[VNNI_ROWS][4];
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        __m512i start = _mm512_load_si512(c.bias.data + panel * PANEL + 16 * g);
#pragma GCC unroll 6
        for (int r = 0; r < VNNI_ROWS; r++) sum[r][g] = start;
    }
    for (int64_t l = 0; l < c.p; l += 4, b += 64) {
        __m512i b0 = _mm512_load_si512(b), b1 = _mm512_load_si512(b + group);
        __m512i b2 = _mm512_load_si512(b + 2 * group), b3 = _mm512_load_si512(b + 3 * group);
#pragma GCC unroll 6
        for (int r = 0; r < VNNI_ROWS; r++) {
            int32_t four;
            std::memcpy(&four, a + r * c.p + l, 4);
            __m512i x = _mm512_set1_epi32(four);
            sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], x, b0);
            sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], x, b1);
            sum[r][2] = _mm512_dpbusd_epi32(sum[r][2], x, b2);
            sum[r][3] = _mm512_dpbusd_epi32(sum[r][3], x, b3);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < VNNI_ROWS; r++)
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++) _mm512_store_si512(product + r * PANEL + 16 * g, sum[r][g]);
}

END_VECTOR_CODE

#ifdef EMULATE_TILES  // the tile instructions in plain code, so that tests reach this path on any processor
thread_local uint8_t tiles[8][16][64];
void tile_configure() {}
void tile_release() {}
#define TILE_LOAD(t, from, stride) \
    for (int i_ = 0; i_ < 16; i_++) std::memcpy(tiles[t][i_], reinterpret_cast<const uint8_t*>(from) + i_ * (stride), 64)
#define TILE_STORE(t, to, stride) \
    for (int i_ = 0; i_ < 16; i_++) std::memcpy(reinterpret_cast<uint8_t*>(to) + i_ * (stride), tiles[t][i_], 64)
void tile_multiply(int to, int a, int b) {
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) {
            int32_t sum;
            std::memcpy(&sum, &tiles[to][i][4 * j], 4);
            for (int l = 0; l < 64; l++) sum += tiles[a][i][l] * static_cast<int8_t>(tiles[b][l / 4][4 * j + l % 4]);
            std::memcpy(&tiles[to][i][4 * j], &sum, 4);
        }
}
#define TILE_MULTIPLY(to, a, b) tile_multiply(to, a, b)
#define TILE_CODE
#else
#define TILE_LOAD(t, from, stride) _tile_loadd(t, from, stride)
#define TILE_STORE(t, to, stride) _tile_stored(t, to, stride)
#define TILE_MULTIPLY(to, a, b) _tile_dpbusd(to, a, b)
#define TILE_CODE __attribute__((target("amx-tile,amx-int8")))
struct alignas(64) TileShape {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
TILE_CODE void tile_configure() {
    TileShape shape;
    _tile_loadconfig(&shape);
}
TILE_CODE void tile_release() { _tile_release(); }
#endif

// (32, 64) products: for each half of the panel 2 x 2 tiles, four accumulators.
TILE_CODE void multiply_amx(const uint8_t* a, const Centroids& c, int64_t panel, int32_t* product) {
    for (int side = 0; side < 2; side++) {
        const int64_t first = panel * PANEL + 32 * side;
        const int8_t* b0 = c.packed.data + first * c.p;
        const int8_t* b1 = b0 + TILE * c.p;
        TILE_LOAD(0, c.bias.data + first, 0);  // stride 0: the same 16 numbers in every row
        TILE_LOAD(1, c.bias.data + first + 16, 0);
        TILE_LOAD(2, c.bias.data + first, 0);
        TILE_LOAD(3, c.bias.data + first + 16, 0);
        for (int64_t l = 0; l < c.p; l += 64) {
            TILE_LOAD(4, a + l, c.p);
            TILE_LOAD(5, a + 16 * c.p + l, c.p);
            TILE_LOAD(6, b0 + l * 16, 64);
            TILE_LOAD(7, b1 + l * 16, 64);
            TILE_MULTIPLY(0, 4, 6);
            TILE_MULTIPLY(1, 4, 7);
            TILE_MULTIPLY(2, 5, 6);
            TILE_MULTIPLY(3, 5, 7);
        }
        int32_t* to = product + 32 * side;
        TILE_STORE(0, to, PANEL * 4);
        TILE_STORE(1, to + 16, PANEL * 4);
        TILE_STORE(2, to + 16 * PANEL, PANEL * 4);
        TILE_STORE(3, to + 16 * PANEL + 16, PANEL * 4);
    }
}

bool has_vnni() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

bool has_amx() {
#ifdef EMULATE_TILES
    return true;
#else
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !((d >> 24) & 1) || !((d >> 25) & 1)) return false;
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
#endif
}

int level_here() { return !has_vnni() ? NONE : has_amx() ? AMX : VNNI; }

// (rows_of_a_product(level), 64) products of the rows at `a` with one panel.
void multiply(int level, const uint8_t* a, const Centroids& c, int64_t panel, int32_t* product) {
    if (level == AMX) multiply_amx(a, c, panel, product);
    else multiply_vnni(a, c, panel, product);
}

}  // namespace selfcluster
