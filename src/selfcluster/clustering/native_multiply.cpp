// Products of rounded rows with a panel of rounded centroids: AVX2 or AVX512, with VNNI or without, and AMX in tiles.

#include "native.hpp"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace selfcluster {

#ifdef NARROW
#define PRODUCT_SET VECTOR_SET ",avxvnni"
#else
#define PRODUCT_SET VECTOR_SET ",avx512vnni"
#endif

VECTOR_CODE

INLINE I16 four(const uint8_t* a) {  // the same four numbers in every lane
    int32_t all;
    std::memcpy(&all, a, 4);
    return set1_epi32(all);
}

END_VECTOR_CODE

#ifdef NARROW
constexpr int GROUPS = 1;  // of 16 centroids side by side; 16 registers of 256 bits
#else
constexpr int GROUPS = 4;  // 32 registers of 512 bits
#endif

PUSH_TARGET(PRODUCT_SET)

#ifdef NARROW
INLINE I16 dpbusd_epi32(I16 sum, I16 x, I16 y) {
    return {_mm256_dpbusd_avx_epi32(sum.a, x.a, y.a), _mm256_dpbusd_avx_epi32(sum.b, x.b, y.b)};
}
#else
INLINE I16 dpbusd_epi32(I16 sum, I16 x, I16 y) { return _mm512_dpbusd_epi32(sum, x, y); }
#endif

// (6, 64) products, the sum of four products an instruction.
void multiply_vnni(const uint8_t* a, const Centroids& c, int64_t panel, int32_t* product) {
    const int64_t group = TILE * c.p;
    for (int first = 0; first < 4; first += GROUPS) {
        const int8_t* b = c.packed.data + panel * PANEL * c.p + first * group;
        I16 sum[VNNI_ROWS][GROUPS];
#pragma GCC unroll 4
        for (int g = 0; g < GROUPS; g++) {
            const I16 start = load_si(c.bias.data + panel * PANEL + 16 * (first + g));
#pragma GCC unroll 6
            for (int r = 0; r < VNNI_ROWS; r++) sum[r][g] = start;
        }
        for (int64_t l = 0; l < c.p; l += 4, b += 64) {
            I16 y[GROUPS];
#pragma GCC unroll 4
            for (int g = 0; g < GROUPS; g++) y[g] = load_si(b + g * group);
#pragma GCC unroll 6
            for (int r = 0; r < VNNI_ROWS; r++) {
                const I16 x = four(a + r * c.p + l);
#pragma GCC unroll 4
                for (int g = 0; g < GROUPS; g++) sum[r][g] = dpbusd_epi32(sum[r][g], x, y[g]);
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < VNNI_ROWS; r++)
#pragma GCC unroll 4
            for (int g = 0; g < GROUPS; g++) store_si(product + r * PANEL + 16 * (first + g), sum[r][g]);
    }
}

END_VECTOR_CODE

VECTOR_CODE

// (4, 64) products without that instruction: numbers of 7 bits, of which two sums of two products fit in 16.
void multiply_pairs(const uint8_t* a, const Centroids& c, int64_t panel, int32_t* product) {
    constexpr int SIDE = GROUPS > 1 ? 2 : 1;
    const int64_t group = TILE * c.p;
    const I16 ones = set1_epi16(1);
    for (int first = 0; first < 4; first += SIDE) {
        const int8_t* b = c.packed.data + panel * PANEL * c.p + first * group;
        I16 sum[PAIRS_ROWS][SIDE];
#pragma GCC unroll 2
        for (int g = 0; g < SIDE; g++) {
            const I16 start = load_si(c.bias.data + panel * PANEL + 16 * (first + g));
#pragma GCC unroll 4
            for (int r = 0; r < PAIRS_ROWS; r++) sum[r][g] = start;
        }
        for (int64_t l = 0; l < c.p; l += 8, b += 128) {
#pragma GCC unroll 2
            for (int g = 0; g < SIDE; g++) {
                const I16 y = load_si(b + g * group), z = load_si(b + g * group + 64);
#pragma GCC unroll 4
                for (int r = 0; r < PAIRS_ROWS; r++) {
                    const I16 low = maddubs_epi16(four(a + r * c.p + l), y);
                    const I16 high = maddubs_epi16(four(a + r * c.p + l + 4), z);
                    sum[r][g] = add_epi32(sum[r][g], madd_epi16(add_epi16(low, high), ones));
                }
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < PAIRS_ROWS; r++)
#pragma GCC unroll 2
            for (int g = 0; g < SIDE; g++) store_si(product + r * PANEL + 16 * (first + g), sum[r][g]);
    }
}

END_VECTOR_CODE

#ifndef NARROW

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
// Not _tile_loadconfig: GCC 12's tells the compiler that 8 bytes are read, so the writes of the other 56 are dropped.
void tile_configure() {
    const TileShape shape;
    asm volatile("ldtilecfg %0" : : "m"(shape));
}
TILE_CODE void tile_release() { _tile_release(); }
#endif

// (32, 64) products: for each half of the panel 2 x 2 tiles, four accumulators.
TILE_CODE void multiply_amx(const uint8_t* a, const Centroids& c, int64_t panel, int32_t* product) {
    asm volatile("" : : : "memory");  // the tile loads below do not tell the compiler that they read memory
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

bool has_amx() {
#ifdef EMULATE_TILES
    return true;
#else
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !((d >> 24) & 1) || !((d >> 25) & 1)) return false;
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
#endif
}

#endif

bool has(int level) {
#ifdef NARROW
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;
    unsigned a = 0, b, c, d;  // compilers do not know AVX-VNNI's name in __builtin_cpu_supports yet
    return level == PAIRS || (level == NARROW_VNNI && __get_cpuid_count(7, 1, &a, &b, &c, &d) && ((a >> 4) & 1));
#else
    for (bool here : {__builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512bw"),
                      __builtin_cpu_supports("avx512vl"), __builtin_cpu_supports("avx512dq")})
        if (!here) return false;
    return level == WIDE_PAIRS || (level == VNNI && __builtin_cpu_supports("avx512vnni")) ||
           (level == AMX && __builtin_cpu_supports("avx512vnni") && has_amx());
#endif
}

int level_here(int most) {
    for (int level = most; level > NONE; level--)
        if (has(level)) return level;
    return NONE;
}

// (rows_of_a_product(level), 64) products of the rows at `a` with one panel.
void multiply(int level, const uint8_t* a, const Centroids& c, int64_t panel, int32_t* product) {
    if (in_pairs(level)) return multiply_pairs(a, c, panel, product);
#ifndef NARROW
    if (level == AMX) return multiply_amx(a, c, panel, product);
#endif
    multiply_vnni(a, c, panel, product);
}

#ifdef NARROW
void tile_configure() {}
void tile_release() {}
#endif

}  // namespace selfcluster
