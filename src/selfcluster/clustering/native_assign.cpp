// Nearest centroids by 8-bit products with a proven error bound, then exact distances of the few candidates left.
//
// u = x - m and v = c - m (m: the mean centroid) are rounded to 8 bits with a scale of their own each. The product of
// the rounded vectors differs from u.v by at most |u - u'| |v| + |u'| |v - v'|, so every centroid whose upper bound
// reaches the best lower bound is compared again in float32, and in float64 where float32 cannot tell. The label is
// that of float64 arithmetic, the lowest number among equals.
//
// The multiplying loops share one layout (native_multiply.cpp).
// Letters: n rows, d dimensions, p = d rounded up to 64, k centroids; a panel is 64
// centroids, a block 96 rows.

#include "native.hpp"

using namespace selfcluster;

namespace {

constexpr int BLOCK = 96;
constexpr int AHEAD = 4;  // rows, of those in no order, that are asked for before they are needed

VECTOR_CODE

void accumulate(double* sum, const float* row, double weight, int64_t d) {
    for (int64_t l = 0; l < d; l++) sum[l] += weight * row[l];
}

END_VECTOR_CODE

// What a thread needs to take blocks of rows through all steps.
struct Worker {
    const float* x;
    int64_t d;
    int level;
    Aligned<float> shifted;
    Aligned<uint8_t> rounded;
    Aligned<int32_t> product;
    Aligned<float> best;

    Worker(const float* x_, const Centroids& c, int level_)
        : x(x_), d(c.d), level(level_), shifted(c.p + 16), rounded(BLOCK * c.p), product(32 * PANEL), best(BLOCK * 16) {
        if (level == AMX) tile_configure();
    }
    ~Worker() {
        if (level == AMX) tile_release();
    }

    void round(const Centroids& c, int64_t row, int r, Rounded& to) {
        round_row(x + row * d, c, shifted.data, rounded.data + r * c.p, to);
    }
    void forget() { std::fill(best.data, best.data + BLOCK * 16, -INFINITE); }
    void products(const Centroids& c, int64_t panel, int r) {
        multiply(level, rounded.data + r * c.p, c, panel, product.data);
    }
};

// Labels of float64 arithmetic.
struct ExactWorker : Worker {
    Aligned<float> upper;
    std::vector<Candidates> rows;
    int64_t compared = 0;

    ExactWorker(const float* x_, const Centroids& c, int level_)
        : Worker(x_, c, level_), upper(BLOCK * STRIDE), rows(BLOCK) {}

    // `count` rows from `start` on.
    void block(const Centroids& c, int64_t start, int count, int64_t* labels, float* distances) {
        for (int r = 0; r < count; r++) {
            round(c, start + r, r, rows[r]);
            rows[r].clear();
        }
        forget();
        const int tall = rows_of_a_product(level);
        for (int64_t first = 0; first < c.panels * PANEL; first += WIDE) {
            const int width = static_cast<int>(std::min<int64_t>(WIDE, c.panels * PANEL - first));
            for (int at = 0; at < width; at += PANEL) {
                const int64_t panel = (first + at) / PANEL;
                for (int r = 0; r < count; r += tall) {  // rows beyond count hold old numbers: multiplied, not read
                    products(c, panel, r);
                    bound(product.data, std::min(tall, count - r), c, panel, rows.data() + r,
                          upper.data + r * STRIDE + at, best.data + r * 16);
                }
            }
            for (int r = 0; r < count; r++)
                screen(upper.data + r * STRIDE, best.data + r * 16, c, first, width, rows[r]);
        }
        fetch(c, rows[0]);
        for (int r = 0; r < count; r++) {
            if (r + 1 < count) fetch(c, rows[r + 1]);
            compared += settle(x + (start + r) * d, c, rows[r], labels + start + r, distances + start + r);
        }
    }
};

// Labels by the rounded product alone.
struct NearWorker : Worker {
    Aligned<int32_t> where;
    std::vector<Rounded> rows;

    NearWorker(const float* x_, const Centroids& c, int level_)
        : Worker(x_, c, level_), where(BLOCK * 16), rows(BLOCK) {}

    // Rows order[0..count) of x, or the `count` rows from `start` on where order is null; numbers into `found` (count,).
    void block(const Centroids& c, int64_t start, const int64_t* order, int count, int64_t* found) {
        for (int r = 0; r < count; r++) {
            if (order && r + AHEAD < count) fetch(x + order[r + AHEAD] * d, d);
            round(c, order ? order[r] : start + r, r, rows[r]);
        }
        forget();
        const int tall = rows_of_a_product(level);
        for (int64_t panel = 0; panel < c.panels; panel++)
            for (int r = 0; r < count; r += tall) {
                products(c, panel, r);
                raise_best(product.data, std::min(tall, count - r), c, panel, rows.data() + r, best.data + r * 16,
                           where.data + r * 16);
            }
        for (int r = 0; r < count; r++) found[r] = c.number(best_lane(best.data + r * 16, where.data + r * 16));
    }
};

}  // namespace

extern "C" {

// The best level at or below `most` that this library has and this processor runs; 0: none.
int selfcluster_level(int most) { return level_here(most); }

// labels (n,), distances (n,) of rows x (n, d) against c (k, d); returns how many distances were computed, -1: no
// memory.
int64_t selfcluster_nearest(const float* x, int64_t n, int64_t d, const float* c, int64_t k, int level, int threads,
                            int64_t* labels, float* distances) try {
    Centroids centroids(c, k, d, level);
    pack(centroids);
    std::atomic<int64_t> next{0}, compared{0};
    in_threads(static_cast<int>(std::min<int64_t>(threads, n / BLOCK)), [&] {
        ExactWorker worker(x, centroids, level);
        for (int64_t start; (start = next.fetch_add(BLOCK)) < n;)
            worker.block(centroids, start, static_cast<int>(std::min<int64_t>(BLOCK, n - start)), labels, distances);
        compared += worker.compared;
    });
    return compared;
} catch (const std::exception&) { return -1; }

// labels (n,) by the rounded product alone: right but for near ties.
int64_t selfcluster_nearly_nearest(const float* x, int64_t n, int64_t d, const float* c, int64_t k, int level,
                                   int threads, int64_t* labels) try {
    Centroids centroids(c, k, d, level);
    pack(centroids);
    std::atomic<int64_t> next{0};
    in_threads(static_cast<int>(std::min<int64_t>(threads, n / BLOCK)), [&] {
        NearWorker worker(x, centroids, level);
        for (int64_t start; (start = next.fetch_add(BLOCK)) < n;) {
            const int count = static_cast<int>(std::min<int64_t>(BLOCK, n - start));
            worker.block(centroids, start, nullptr, count, labels + start);
        }
    });
    return 0;
} catch (const std::exception&) { return -1; }

// The same where the rows order[begin[g]..begin[g + 1]) of region g are compared with its own m centroids only,
// lists[g] (m,), their numbers rising, and with the centroid last[i] that row i had before (null: none), which it
// leaves for a nearer one only. `distances` (n,) are those to the labels.
int64_t selfcluster_nearest_listed(const float* x, int64_t d, const float* c, int64_t k, const int64_t* order,
                                   const int64_t* begin, int64_t regions, const int64_t* lists, int64_t m,
                                   const int64_t* last, int level, int threads, int64_t* labels, float* distances) try {
    Centroids all(c, k, d, level);
    pack(all);
    std::atomic<int64_t> next{0};
    in_threads(threads, [&] {
        NearWorker worker(x, all, level);
        Centroids some(c, m, d, level);
        pad(some);
        int64_t found[BLOCK];
        for (int64_t g; (g = next.fetch_add(1)) < regions;) {
            if (begin[g] == begin[g + 1]) continue;
            select(all, lists + g * m, some);
            for (int64_t i = begin[g]; i < begin[g + 1]; i += BLOCK) {
                const int count = static_cast<int>(std::min<int64_t>(BLOCK, begin[g + 1] - i));
                worker.block(some, 0, order + i, count, found);
                for (int r = 0; r < count; r++) {
                    if (r + 1 < count) {
                        fetch(c + found[r + 1] * d, d);
                        if (last) fetch(c + last[order[i + r + 1]] * d, d);
                    }
                    const int64_t row = order[i + r], before = last ? last[row] : found[r];
                    labels[row] = found[r];
                    distances[row] = distance32(x + row * d, c + found[r] * d, d);
                    if (before == found[r]) continue;
                    const float distance = distance32(x + row * d, c + before * d, d);
                    if (!(distance < distances[row])) continue;
                    labels[row] = before;
                    distances[row] = distance;
                }
            }
        }
    });
    return 0;
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
                if (i + AHEAD < n) fetch(x + order[i + AHEAD] * d, d);
                accumulate(sum, row, weight ? weight[order[i]] : 1.0, d);
            }
        }
    });
    return 0;
} catch (const std::exception&) { return -1; }
}
