// What the parts of the compiled kernels share: rounded centroids, candidates of a row, threads.
//
// One library, loaded with ctypes and built on first use by native.py: native_pack (rounding to 8 bits),
// native_multiply (products), native_settle (bounds and exact distances), native_assign, native_neighbors and
// native_sinkhorn (what Python calls). native_vectors.hpp has the instructions.
//
// Letters: n rows, d dimensions, p = d rounded up to 64, k centroids; a panel is 64 centroids.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <thread>
#include <vector>

#include "native_vectors.hpp"

namespace selfcluster {

constexpr int PANEL = 64, TILE = 16, LIST = 96;
constexpr int WIDE = 1024;         // centroids whose scores are held at once: 400 KB, half of a second-level cache
constexpr int STRIDE = WIDE + 16;  // rows 4,096 bytes apart would fight for the same cache lines
constexpr float UNIT = 5.9604645e-8f;  // 2^-24, float32's unit roundoff
constexpr float INFINITE = std::numeric_limits<float>::infinity();
constexpr int PAIRS_ROWS = 4, VNNI_ROWS = 6, AMX_ROWS = 32;  // rows of a product: what fits the registers

enum Score { DISTANCE, PRODUCT };  // s = u.v - |v|^2 / 2, or u.v + m.v
// What multiplies 8-bit numbers. PAIRS: `vpmaddubsw`, in 256 bits or, WIDE_PAIRS, in 512; NARROW_VNNI: `vpdpbusd` in 256
// bits (AVX-VNNI). A library built with -DNARROW has the first two, one without it the last three.
enum Level { NONE = 0, PAIRS = 1, NARROW_VNNI = 2, WIDE_PAIRS = 3, VNNI = 4, AMX = 5 };

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
    int reach;  // numbers are rounded to [-reach, reach]: two pairs of products of 7 bits fit in 16, of 8 bits not
    const float* raw;       // (all k, d)
    const int64_t* names = nullptr;  // of a selection: the number of each in `raw`, rising
    Aligned<float> middle;  // (d,)
    Aligned<int8_t> packed; // per panel: 4 groups of [p / 4][16 centroids][4 dimensions]
    Aligned<int32_t> bias;  // -(reach + 1) times the sum of the rounded centroid: rows are stored with that added
    Aligned<float> scale, half, length;  // (k,): step, what s subtracts, |v|
    float worst = 0;        // largest |v - v'| / |v|
    float largest = 0;      // largest |half|
    Centroids(const float* c, int64_t k_, int64_t d_, int level)
        : k(k_), d(d_), p((d_ + 63) / 64 * 64), panels((k_ + PANEL - 1) / PANEL),
          reach(level == PAIRS || level == WIDE_PAIRS ? 63 : 127), raw(c), middle(d_),
          packed(panels * PANEL * p), bias(panels * PANEL), scale(panels * PANEL), half(panels * PANEL),
          length(panels * PANEL) {}
    int64_t number(int64_t j) const { return names ? names[j] : j; }
};

struct Rounded {     // of one row
    float slack = 0;  // the error bound divided by |v|
    float step = 0;
    float square = 0;  // |u|^2
};

struct Candidates : Rounded {  // of one row: numbers in rising order with their upper bounds
    int count = 0;
    bool full = false;
    float floor = -INFINITE;  // the best centroid scores at least this
    int32_t number[LIST];
    float upper[LIST];

    void clear() {
        count = 0;
        full = false;
        floor = -INFINITE;
    }

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

inline void fetch(const float* row, int64_t d) {
    for (int64_t l = 0; l < d; l += 16) __builtin_prefetch(row + l);
}

inline Mask lanes(int64_t left) { return left >= 16 ? 0xffff : (1u << left) - 1; }

template <class F>
void in_threads(int threads, F&& run) {
    std::vector<std::thread> others;
    for (int t = 1; t < threads; t++) others.emplace_back(run);
    run();
    for (auto& other : others) other.join();
}

// native_pack.cpp
void pad(Centroids& c);
void pack(Centroids& c, Score score = DISTANCE, int threads = 1);
void select(const Centroids& all, const int64_t* names, Centroids& to);
void round_row(const float* x, const Centroids& c, float* u, uint8_t* to, Rounded& row);

// native_multiply.cpp
// Rows beyond those wanted are multiplied, too: storage of rounded rows is a multiple of both heights.
int level_here(int most);
void tile_configure();
void tile_release();
void multiply(int level, const uint8_t* a, const Centroids& c, int64_t panel, int32_t* product);
inline bool in_pairs(int level) { return level == PAIRS || level == WIDE_PAIRS; }
inline int rows_of_a_product(int level) { return level == AMX ? AMX_ROWS : in_pairs(level) ? PAIRS_ROWS : VNNI_ROWS; }

// native_settle.cpp
void bound(const int32_t* product, int rows, const Centroids& c, int64_t panel, const Candidates* row, float* upper,
           float* best);
void raise_best(const int32_t* product, int rows, const Centroids& c, int64_t panel, const Rounded* row, float* best,
                int32_t* where);
int32_t best_lane(const float* best, const int32_t* where);
void screen(const float* upper, const float* best, const Centroids& c, int64_t first, int width, Candidates& row);
float distance32(const float* x, const float* y, int64_t d);
double distance64(const float* x, const float* y, int64_t d);
double product64(const float* x, const float* y, int64_t d);
void fetch(const Centroids& c, const Candidates& row);
int64_t settle(const float* x, const Centroids& c, const Candidates& row, int64_t* label, float* distance);

}  // namespace selfcluster
