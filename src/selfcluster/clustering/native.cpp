// Nearest centroids by 8-bit products with a proven error bound, then exact distances of the few candidates left.
//
// u = x - m and v = c - m (m: the mean centroid) are rounded to 8 bits with a scale of their own each. The product of
// the rounded vectors differs from u.v by at most |u - u'| |v| + |u'| |v - v'|, so every centroid whose upper bound
// reaches the best lower bound is compared again in float32, and in float64 where float32 cannot tell. The label is
// that of float64 arithmetic, the lowest number among equals.
//
// Two multiplying loops share one layout: AVX512-VNNI (6 rows x 64 centroids in registers) and AMX (32 x 32 in tiles).
// A plain C interface, loaded with ctypes. Built on first use by native.py.
//
// Letters: n rows, d dimensions, p = d rounded up to 64, k centroids; a panel is 64 centroids, a block 96 rows.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__clang__)
#define VECTOR_CODE _Pragma("clang attribute push(__attribute__((target(\"avx512f,avx512bw,avx512vl,avx512dq,avx512vnni\"))), apply_to=function)")
#define END_VECTOR_CODE _Pragma("clang attribute pop")
#else
#define VECTOR_CODE _Pragma("GCC push_options") _Pragma("GCC target(\"avx512f,avx512bw,avx512vl,avx512dq,avx512vnni\")")
#define END_VECTOR_CODE _Pragma("GCC pop_options")
#endif

namespace {

constexpr int PANEL = 64, BLOCK = 96, VNNI_ROWS = 6, TILE = 16, LIST = 96;
constexpr int WIDE = 1024;         // centroids whose scores are held at once: 400 KB, half of a second-level cache
constexpr int STRIDE = WIDE + 16;  // rows 4,096 bytes apart would fight for the same cache lines
constexpr float UNIT = 5.9604645e-8f;  // 2^-24, float32's unit roundoff

enum Level { NONE = 0, VNNI = 1, AMX = 2 };

template <class T>
struct Aligned {  // 64-byte aligned storage
    T* data;
    explicit Aligned(size_t n) : data(static_cast<T*>(aligned_alloc(64, (n * sizeof(T) + 127) / 64 * 64))) {
        if (!data) throw std::bad_alloc();
        std::memset(data, 0, n * sizeof(T));
    }
    ~Aligned() { free(data); }
    Aligned(const Aligned&) = delete;
    Aligned& operator=(const Aligned&) = delete;
};

struct Centroids {
    int64_t k, d, p, panels;
    const float* raw;       // (all k, d)
    const int64_t* names = nullptr;  // of a selection: the number of each in `raw`, rising
    Aligned<float> middle;  // (d,)
    Aligned<int8_t> packed; // per panel: 4 groups of [p / 4][16 centroids][4 dimensions]
    Aligned<int32_t> bias;  // -128 times the sum of the rounded centroid: rows are stored with 128 added
    Aligned<float> scale, half, length;  // (k,): step, |v|^2 / 2, |v|
    float worst = 0;        // largest |v - v'| / |v|
    float largest = 0;      // largest |v|^2 / 2
    Centroids(const float* c, int64_t k_, int64_t d_)
        : k(k_), d(d_), p((d_ + 63) / 64 * 64), panels((k_ + PANEL - 1) / PANEL), raw(c), middle(d_),
          packed(panels * PANEL * p), bias(panels * PANEL), scale(panels * PANEL), half(panels * PANEL),
          length(panels * PANEL) {}
    int64_t number(int64_t j) const { return names ? names[j] : j; }
};

struct Candidates {  // of one row: numbers in rising order with their upper bounds
    int count = 0;
    bool full = false;
    float floor = -std::numeric_limits<float>::infinity();  // the best centroid scores at least this
    float slack = 0;                                        // the error bound divided by |v|
    float step = 0;
    float square = 0;                                       // |u|^2
    int32_t number[LIST];
    float upper[LIST];

    void add(int32_t j, float bound) {
        if (count == LIST) {
            int kept = 0;
            for (int i = 0; i < count; i++)
                if (upper[i] >= floor) { number[kept] = number[i]; upper[kept++] = upper[i]; }
            count = kept;
            if (count == LIST) { full = true; return; }
        }
        number[count] = j;
        upper[count++] = bound;
    }
};

// Padding of the last panel: an upper bound of minus infinity.
void pad(Centroids& c) {
    for (int64_t j = c.k; j < c.panels * PANEL; j++) c.half.data[j] = std::numeric_limits<float>::infinity();
}

void pack(Centroids& c) {
    std::vector<double> sum(c.d, 0.0);
    for (int64_t j = 0; j < c.k; j++)
        for (int64_t l = 0; l < c.d; l++) sum[l] += c.raw[j * c.d + l];
    for (int64_t l = 0; l < c.d; l++) c.middle.data[l] = static_cast<float>(sum[l] / c.k);
    pad(c);
    for (int64_t j = 0; j < c.k; j++) {
        double square = 0, lost = 0;
        float largest = 0;
        for (int64_t l = 0; l < c.d; l++) {
            double v = static_cast<double>(c.raw[j * c.d + l]) - c.middle.data[l];
            square += v * v;
            largest = std::max(largest, static_cast<float>(std::fabs(v)));
        }
        float step = largest / 127, inverse = largest > 0 ? 127 / largest : 0;
        int8_t* to = c.packed.data + (j / TILE) * TILE * c.p + (j % TILE) * 4;
        int32_t total = 0;
        for (int64_t l = 0; l < c.d; l++) {
            double v = static_cast<double>(c.raw[j * c.d + l]) - c.middle.data[l];
            int q = static_cast<int>(std::lrint(std::min(127.0, std::max(-127.0, v * inverse))));
            lost += (v - static_cast<double>(step) * q) * (v - static_cast<double>(step) * q);
            to[(l / 4) * 64 + l % 4] = static_cast<int8_t>(q);
            total += q;
        }
        c.bias.data[j] = -128 * total;
        c.scale.data[j] = step;
        c.half.data[j] = static_cast<float>(square / 2);
        c.largest = std::max(c.largest, c.half.data[j]);
        c.length.data[j] = static_cast<float>(std::sqrt(square) * (1 + 1e-6));
        if (square > 0) c.worst = std::max(c.worst, static_cast<float>(std::sqrt(lost / square) * (1 + 1e-6)));
    }
}

// `to` becomes the `names` of `all`.
void select(const Centroids& all, const int64_t* names, Centroids& to) {
    to.names = names;
    to.worst = all.worst;
    to.largest = all.largest;
    std::copy(all.middle.data, all.middle.data + all.d, to.middle.data);
    for (int64_t i = 0; i < to.k; i++) {
        const int64_t j = names[i];
        const int8_t* from = all.packed.data + (j / TILE) * TILE * all.p + (j % TILE) * 4;
        int8_t* into = to.packed.data + (i / TILE) * TILE * to.p + (i % TILE) * 4;
        for (int64_t l = 0; l < all.p; l += 4, from += 64, into += 64) std::memcpy(into, from, 4);
        to.bias.data[i] = all.bias.data[j];
        to.scale.data[i] = all.scale.data[j];
        to.half.data[i] = all.half.data[j];
        to.length.data[i] = all.length.data[j];
    }
}

VECTOR_CODE

// One row: u = x - m rounded to q, stored as q + 128.
void round_row(const float* x, const Centroids& c, float* u, uint8_t* to, Candidates& row) {
    __m512 largest = _mm512_setzero_ps(), square = _mm512_setzero_ps();
    for (int64_t l = 0; l < c.d; l += 16) {
        __mmask16 m = c.d - l >= 16 ? 0xffff : (1u << (c.d - l)) - 1;
        __m512 v = _mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + l), _mm512_maskz_loadu_ps(m, c.middle.data + l));
        _mm512_storeu_ps(u + l, v);
        largest = _mm512_max_ps(largest, _mm512_abs_ps(v));
        square = _mm512_fmadd_ps(v, v, square);
    }
    float most = _mm512_reduce_max_ps(largest);
    float step = most / 127, inverse = most > 1e-30f ? 127 / most : 0;
    __m512 by = _mm512_set1_ps(inverse), back = _mm512_set1_ps(step);
    __m512 lost = _mm512_setzero_ps(), kept = _mm512_setzero_ps();
    for (int64_t l = 0; l < c.p; l += 16) {
        __m512 v = _mm512_loadu_ps(u + l);  // zero beyond d
        __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(v, by));
        __m512 rounded = _mm512_mul_ps(_mm512_cvtepi32_ps(q), back), gap = _mm512_sub_ps(v, rounded);
        lost = _mm512_fmadd_ps(gap, gap, lost);
        kept = _mm512_fmadd_ps(rounded, rounded, kept);
        __m128i bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(q, _mm512_set1_epi32(128)));
        _mm_store_si128(reinterpret_cast<__m128i*>(to + l), bytes);
    }
    const float safe = 1 + (c.d + 16) * UNIT;  // the norms are float32 sums themselves
    float length = std::sqrt(_mm512_reduce_add_ps(kept)) * safe;
    row.square = _mm512_reduce_add_ps(square);
    row.step = step;
    row.slack = std::sqrt(_mm512_reduce_add_ps(lost)) * safe + length * (c.worst + 16 * UNIT);
    row.count = 0;
    row.full = false;
    row.floor = -std::numeric_limits<float>::infinity();
}

// Products of some rows with one panel are in `product` (rows, 64): write upper bounds of the scores to `upper`
// (rows, STRIDE) and raise `best` (rows, 16), the lower bounds by lane.
void bound(const int32_t* product, int rows, const Centroids& c, int64_t panel, const Candidates* row, float* upper,
           float* best) {
    const int64_t first = panel * PANEL;
    __m512 scale[4], half[4], length[4];
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        scale[g] = _mm512_load_ps(c.scale.data + first + 16 * g);
        half[g] = _mm512_load_ps(c.half.data + first + 16 * g);
        length[g] = _mm512_load_ps(c.length.data + first + 16 * g);
    }
    for (int r = 0; r < rows; r++, product += PANEL, upper += STRIDE, best += 16) {
        const __m512 step = _mm512_set1_ps(row[r].step), slack = _mm512_set1_ps(row[r].slack);
        __m512 most = _mm512_load_ps(best);
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++) {
            __m512 s = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(product + 16 * g)), scale[g]);
            s = _mm512_fmsub_ps(s, step, half[g]);
            _mm512_store_ps(upper + 16 * g, _mm512_fmadd_ps(slack, length[g], s));
            most = _mm512_max_ps(most, _mm512_fnmadd_ps(slack, length[g], s));
        }
        _mm512_store_ps(best, most);
    }
}

// Keep the centroids [first, first + width) whose upper bound reaches the best lower bound.
void screen(const float* upper, const float* best, const Centroids& c, int64_t first, int width, Candidates& row) {
    const float blur = 16 * UNIT * c.largest;  // rounding of |v|^2 / 2 in both bounds
    row.floor = std::max(row.floor, _mm512_reduce_max_ps(_mm512_load_ps(best)) - blur);
    const __m512 floor = _mm512_set1_ps(row.floor);
    for (int at = 0; at < width; at += PANEL) {
        uint64_t mask = 0;
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++)
            mask |= static_cast<uint64_t>(_mm512_cmp_ps_mask(_mm512_load_ps(upper + at + 16 * g), floor, _CMP_GE_OQ))
                    << (16 * g);
        for (; mask; mask &= mask - 1) {
            const int lane = at + __builtin_ctzll(mask);
            if (first + lane < c.k) row.add(static_cast<int32_t>(first + lane), upper[lane]);
        }
    }
}

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

void accumulate(double* sum, const float* row, double weight, int64_t d) {
    for (int64_t l = 0; l < d; l++) sum[l] += weight * row[l];
}

float distance32(const float* x, const float* y, int64_t d) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    int64_t l = 0;
    for (; l + 32 <= d; l += 32) {
        __m512 gap = _mm512_sub_ps(_mm512_loadu_ps(x + l), _mm512_loadu_ps(y + l));
        __m512 next = _mm512_sub_ps(_mm512_loadu_ps(x + l + 16), _mm512_loadu_ps(y + l + 16));
        even = _mm512_fmadd_ps(gap, gap, even);
        odd = _mm512_fmadd_ps(next, next, odd);
    }
    for (; l < d; l += 16) {
        __mmask16 m = d - l >= 16 ? 0xffff : (1u << (d - l)) - 1;
        __m512 gap = _mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + l), _mm512_maskz_loadu_ps(m, y + l));
        even = _mm512_fmadd_ps(gap, gap, even);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
}

double distance64(const float* x, const float* y, int64_t d) {
    __m512d sum = _mm512_setzero_pd();
    for (int64_t l = 0; l < d; l += 8) {
        __mmask8 m = d - l >= 8 ? 0xff : (1u << (d - l)) - 1;
        __m512d gap = _mm512_sub_pd(_mm512_cvtps_pd(_mm256_maskz_loadu_ps(m, x + l)),
                                    _mm512_cvtps_pd(_mm256_maskz_loadu_ps(m, y + l)));
        sum = _mm512_fmadd_pd(gap, gap, sum);
    }
    return _mm512_reduce_add_pd(sum);
}

// Ask for a row's first candidates before they are needed: centroids in float32 seldom fit the second-level cache.
void fetch(const Centroids& c, const Candidates& row) {
    for (int i = 0; i < std::min(row.count, 4); i++)
        for (int64_t l = 0; l < c.d; l += 16) __builtin_prefetch(c.raw + c.number(row.number[i]) * c.d + l);
}

// The exact winner among a row's candidates; returns how many distances were computed.
int64_t settle(const float* x, const Centroids& c, const Candidates& row, int64_t* label, float* distance) {
    if (row.count == 1) {
        *label = c.number(row.number[0]);
        *distance = distance32(x, c.raw + *label * c.d, c.d);
        return 1;
    }
    const int64_t many = row.full || row.count == 0 ? c.k : row.count;
    const bool all = many == c.k && row.count != c.k;
    auto number = [&](int64_t i) { return c.number(all ? i : row.number[i]); };
    const float doubt = 4 * (c.d / 16 + 16) * UNIT;       // relative error of two float32 distances, and some
    const float blur = 2 * (c.d + 16) * UNIT * row.square;  // of the bound |u|^2 - 2 s
    float few[LIST];
    std::vector<float> more(all ? many : 0);
    float* found = all ? more.data() : few;
    std::fill(found, found + many, std::numeric_limits<float>::infinity());
    int64_t start = 0, compared = 0;
    if (!all)
        for (int64_t i = 1; i < many; i++)
            if (row.upper[i] > row.upper[start]) start = i;
    float best = found[start] = distance32(x, c.raw + number(start) * c.d, c.d);
    compared++;
    for (int64_t i = 0; i < many; i++) {
        if (i == start) continue;
        if (!all && (row.upper[i] < row.floor || row.square - 2 * row.upper[i] - blur > best * (1 + doubt))) continue;
        found[i] = distance32(x, c.raw + number(i) * c.d, c.d);
        best = std::min(best, found[i]);
        compared++;
    }
    const float reach = best * (1 + doubt) + 1e-37f;
    int64_t winner = -1, close = 0;
    for (int64_t i = 0; i < many; i++)
        if (found[i] <= reach) { close++; if (winner < 0) winner = i; }
    if (close > 1) {
        double least = std::numeric_limits<double>::infinity();
        for (int64_t i = winner; i < many; i++) {
            if (!(found[i] <= reach)) continue;
            double exact = distance64(x, c.raw + number(i) * c.d, c.d);
            if (exact < least) { least = exact; winner = i; }
        }
    }
    winner = std::max<int64_t>(winner, 0);  // rows with NaN
    *label = number(winner);
    *distance = found[winner];
    return compared;
}

END_VECTOR_CODE

#ifdef EMULATE_TILES  // the tile instructions in plain code, so that tests reach this path on any processor
uint8_t tiles[8][16][64];
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

// What a thread needs to take blocks of rows through all steps.
struct Worker {
    const float* x;
    int64_t d;
    int level;
    Aligned<float> shifted;
    Aligned<uint8_t> rounded;
    Aligned<int32_t> product;
    Aligned<float> upper, best;
    std::vector<Candidates> rows;
    int64_t compared = 0;

    Worker(const float* x_, const Centroids& c, int level_)
        : x(x_), d(c.d), level(level_), shifted(c.p + 16), rounded(BLOCK * c.p), product(32 * PANEL),
          upper(BLOCK * STRIDE), best(BLOCK * 16), rows(BLOCK) {
        if (level == AMX) tile_configure();
    }
    ~Worker() {
        if (level == AMX) tile_release();
    }

    // Rows order[0..count) of x, or the `count` rows from `start` on where order is null.
    // Without `distances` the label is the candidate of the highest bound, unsettled.
    void block(const Centroids& c, int64_t start, const int64_t* order, int count, int64_t* labels, float* distances) {
        auto place = [&](int r) { return order ? order[r] : start + r; };
        for (int r = 0; r < count; r++) {
            if (order && r + 2 < count)
                for (int64_t l = 0; l < d; l += 16) __builtin_prefetch(x + order[r + 2] * d + l);
            round_row(x + place(r) * d, c, shifted.data, rounded.data + r * c.p, rows[r]);
        }
        std::fill(best.data, best.data + BLOCK * 16, -std::numeric_limits<float>::infinity());
        const int tall = level == AMX ? 32 : VNNI_ROWS;
        for (int64_t first = 0; first < c.panels * PANEL; first += WIDE) {
            const int width = static_cast<int>(std::min<int64_t>(WIDE, c.panels * PANEL - first));
            for (int at = 0; at < width; at += PANEL) {
                const int64_t panel = (first + at) / PANEL;
                for (int r = 0; r < count; r += tall) {  // rows beyond count hold old numbers: multiplied, not read
                    if (level == AMX) multiply_amx(rounded.data + r * c.p, c, panel, product.data);
                    else multiply_vnni(rounded.data + r * c.p, c, panel, product.data);
                    bound(product.data, std::min(tall, count - r), c, panel, rows.data() + r,
                          upper.data + r * STRIDE + at, best.data + r * 16);
                }
            }
            for (int r = 0; r < count; r++)
                screen(upper.data + r * STRIDE, best.data + r * 16, c, first, width, rows[r]);
        }
        for (int r = 0; r < count && !distances; r++) {
            const float* bounds = rows[r].upper;
            const int64_t top = std::max_element(bounds, bounds + rows[r].count) - bounds;
            labels[place(r)] = rows[r].count ? c.number(rows[r].number[top]) : 0;
        }
        if (!distances) return;
        fetch(c, rows[0]);
        for (int r = 0; r < count; r++) {
            if (r + 1 < count) fetch(c, rows[r + 1]);
            compared += settle(x + place(r) * d, c, rows[r], labels + place(r), distances + place(r));
        }
    }
};

template <class F>
void in_threads(int threads, F&& run) {
    std::vector<std::thread> others;
    for (int t = 1; t < threads; t++) others.emplace_back(run);
    run();
    for (auto& other : others) other.join();
}

}  // namespace

extern "C" {

int selfcluster_level() { return !has_vnni() ? NONE : has_amx() ? AMX : VNNI; }

// labels (n,), distances (n,) of rows x (n, d) against c (k, d); returns how many distances were computed, -1: no
// memory. Where `distances` is null labels are near the nearest only.
int64_t selfcluster_nearest(const float* x, int64_t n, int64_t d, const float* c, int64_t k, int level, int threads,
                            int64_t* labels, float* distances) try {
    Centroids centroids(c, k, d);
    pack(centroids);
    std::atomic<int64_t> next{0}, compared{0};
    in_threads(static_cast<int>(std::min<int64_t>(threads, n / BLOCK)), [&] {
        Worker worker(x, centroids, level);
        for (int64_t start; (start = next.fetch_add(BLOCK)) < n;)
            worker.block(centroids, start, nullptr, static_cast<int>(std::min<int64_t>(BLOCK, n - start)), labels,
                         distances);
        compared += worker.compared;
    });
    return compared;
} catch (const std::exception&) { return -1; }

// The same where the rows order[begin[g]..begin[g + 1]) of region g are compared with its own m centroids only,
// lists[g] (m,), their numbers rising, and with the centroid last[i] that row i had before (null: none).
int64_t selfcluster_nearest_listed(const float* x, int64_t d, const float* c, int64_t k, const int64_t* order,
                                   const int64_t* begin, int64_t regions, const int64_t* lists, int64_t m,
                                   const int64_t* last, int level, int threads, int64_t* labels, float* distances) try {
    Centroids all(c, k, d);
    pack(all);
    std::atomic<int64_t> next{0}, compared{0};
    in_threads(threads, [&] {
        Worker worker(x, all, level);
        Centroids some(c, m, d);
        pad(some);
        for (int64_t g; (g = next.fetch_add(1)) < regions;) {
            if (begin[g] == begin[g + 1]) continue;
            select(all, lists + g * m, some);
            for (int64_t i = begin[g]; i < begin[g + 1]; i += BLOCK)
                worker.block(some, 0, order + i, static_cast<int>(std::min<int64_t>(BLOCK, begin[g + 1] - i)), labels,
                             distances);
            for (int64_t i = begin[g]; last && i < begin[g + 1]; i++) {
                const int64_t row = order[i], before = last[row];
                if (before == labels[row]) continue;
                const float distance = distance32(x + row * d, c + before * d, d);
                if (!(distance < distances[row])) continue;
                labels[row] = before;
                distances[row] = distance;
            }
        }
        compared += worker.compared;
    });
    return compared;
} catch (const std::exception&) { return -1; }

// sums (k, d) += the rows of each cluster, one cluster after another: the order does not depend on the threads.
// `weight` (n,) may be null.
int64_t selfcluster_add(const float* x, int64_t n, int64_t d, const int64_t* labels, const double* weight, int64_t k,
                        int threads, double* sums) try {
    std::vector<int64_t> begin(k + 1, 0), order(n);
    for (int64_t i = 0; i < n; i++) begin[labels[i] + 1]++;
    for (int64_t j = 0; j < k; j++) begin[j + 1] += begin[j];
    std::vector<int64_t> at(begin.begin(), begin.end() - 1);
    for (int64_t i = 0; i < n; i++) order[at[labels[i]]++] = i;
    std::atomic<int64_t> next{0};
    in_threads(n * d < (1 << 20) ? 1 : threads, [&] {
        for (int64_t j; (j = next.fetch_add(1)) < k;) {
            double* sum = sums + j * d;
            for (int64_t i = begin[j]; i < begin[j + 1]; i++) {
                const float* row = x + order[i] * d;
                if (i + 2 < n)
                    for (int64_t l = 0; l < d; l += 16) __builtin_prefetch(x + order[i + 2] * d + l);
                accumulate(sum, row, weight ? weight[order[i]] : 1.0, d);
            }
        }
    });
    return 0;
} catch (const std::exception&) { return -1; }
}
