// Sinkhorn without its matrix: exp((scores - row maximum) / epsilon) is computed anew in every pass, in registers.
//
// Reading 49 MB of scores costs more than their exponentials; a matrix of exponentials would be written, too. A pass
// reads the scores once: what a row contributes to the column sums depends on that row and the column factors only.
// Rows are cut into as many stretches as there are threads, whose sums are added in order: results depend on the number
// of threads, never on timing. float32 sums of 16 rows are added up in float64.
//
// Letters: n rows, k columns, u (k,) column factors, v (n,) row factors.

#include "native.hpp"

using namespace selfcluster;

namespace {

constexpr int AHEAD = 4;
constexpr int ROWS = 2;     // exponentials held at once: 48 KB at 3,000 columns
constexpr int STRETCH = 16; // rows between two additions in float64

struct Scores {
    const float* data;
    int64_t n, k, stride;
    float by, lowest;  // 1 / epsilon, the least exponent
    const float* row(int64_t i) const { return data + i * stride; }
};

VECTOR_CODE

// 2^x for x in [-126, 0]: 2^n 2^r with |r| <= 1/2, Taylor's series to (r ln 2)^7 / 7!, 5e-9 off.
inline F16 power(F16 x) {
    constexpr float L = 0.693147181f;
    const F16 n = round_ps(x), r = sub_ps(x, n);
    F16 p = set1_ps(L * L * L * L * L * L * L / 5040);
    for (float c : {L * L * L * L * L * L / 720, L * L * L * L * L / 120, L * L * L * L / 24, L * L * L / 6, L * L / 2, L, 1.0f})
        p = fmadd_ps(p, r, set1_ps(c));
    return scalef_ps(p, n);
}

// Of 16 scores. NaN comes through: the second operand of max is what it returns then.
inline F16 entries(const Scores& s, F16 scores, F16 top) {
    const F16 x = mul_ps(sub_ps(scores, top), set1_ps(s.by));
    return power(max_ps(set1_ps(s.lowest), x));
}

float highest(const float* row, int64_t k) {
    F16 even = set1_ps(-INFINITE), odd = even;
    int64_t j = 0;
    for (; j + 32 <= k; j += 32) {
        even = max_ps(even, loadu_ps(row + j));
        odd = max_ps(odd, loadu_ps(row + j + 16));
    }
    for (; j < k; j += 16) {
        const Mask m = lanes(k - j);
        even = max_ps(even, mask_mov_ps(set1_ps(-INFINITE), m, maskz_loadu_ps(m, row + j)));
    }
    return reduce_max_ps(max_ps(even, odd));
}

// The entries of a row of M into `held`; the sum of their products with u.
float expand(const Scores& s, int64_t i, float top, const float* u, float* held) {
    const float *row = s.row(i), *later = s.row(std::min(i + AHEAD, s.n - 1));
    const F16 shift = set1_ps(top);
    F16 sum = setzero_ps();
    int64_t j = 0;
    for (; j + 16 <= s.k; j += 16) {
        __builtin_prefetch(later + j);
        const F16 e = entries(s, loadu_ps(row + j), shift);
        store_ps(held + j, e);
        sum = fmadd_ps(e, loadu_ps(u + j), sum);
    }
    if (j < s.k) {
        const Mask m = lanes(s.k - j);
        const F16 e = entries(s, maskz_loadu_ps(m, row + j), shift);
        store_ps(held + j, e);
        sum = fmadd_ps(mask_mov_ps(setzero_ps(), m, e), maskz_loadu_ps(m, u + j), sum);
    }
    return reduce_add_ps(sum);
}

// total += the rows' sum weighted by v.
void gather(const float* held, int64_t width, int64_t k, int count, const float* v, float* total) {
    F16 by[ROWS];
    for (int r = 0; r < ROWS; r++) by[r] = set1_ps(r < count ? v[r] : 0);
    for (int64_t j = 0; j < k; j += 16) {
        F16 sum = mul_ps(by[0], load_ps(held + j));
        for (int r = 1; r < ROWS; r++) sum = fmadd_ps(by[r], load_ps(held + r * width + j), sum);
        store_ps(total + j, add_ps(load_ps(total + j), sum));
    }
}

// Sums over some rows, in float32 until flushed.
struct Sums {
    const Scores& s;
    const int64_t width;
    Aligned<float> held, total;
    float v[ROWS];
    double* totals;
    Sums(const Scores& s_, double* totals_)
        : s(s_), width((s.k + 15) / 16 * 16 + 16), held(ROWS * width), total(width), totals(totals_) {}

    void flush() {
        for (int64_t j = 0; j < s.k; j++) {
            totals[j] += total.data[j];
            total.data[j] = 0;
        }
    }
};

// v is given, or null: then 1 / (M u).
void columns(const Scores& s, int64_t first, int64_t last, const float* top, const float* u, const float* v,
             double* totals) {
    Sums sums(s, totals);
    for (int64_t i = first; i < last; i += ROWS) {
        const int count = static_cast<int>(std::min<int64_t>(ROWS, last - i));
        for (int r = 0; r < count; r++) {
            const float product = expand(s, i + r, top[i + r], u, sums.held.data + r * sums.width);
            sums.v[r] = v ? v[i + r] : 1 / product;
        }
        gather(sums.held.data, sums.width, s.k, count, sums.v, sums.total.data);
        if ((i - first) % STRETCH == STRETCH - ROWS) sums.flush();
    }
    sums.flush();
}

// The first sums, with v = 2^((top - reference) by): the reference, the highest maximum so far, rises on the way.
float start(const Scores& s, int64_t first, int64_t last, float* top, const float* ones, double* totals) {
    Sums sums(s, totals);
    float reference = -INFINITE;
    for (int64_t i = first; i < last; i += ROWS) {
        const int count = static_cast<int>(std::min<int64_t>(ROWS, last - i));
        for (int r = 0; r < count; r++) {
            top[i + r] = highest(s.row(i + r), s.k);
            if (top[i + r] <= reference) continue;
            sums.flush();
            const double fewer = std::exp2((static_cast<double>(reference) - top[i + r]) * s.by);
            for (int64_t j = 0; j < s.k; j++) totals[j] *= fewer;
            reference = top[i + r];
        }
        for (int r = 0; r < count; r++) {
            expand(s, i + r, top[i + r], ones, sums.held.data + r * sums.width);
            sums.v[r] = std::exp2((top[i + r] - reference) * s.by);
        }
        gather(sums.held.data, sums.width, s.k, count, sums.v, sums.total.data);
        if ((i - first) % STRETCH == STRETCH - ROWS) sums.flush();
    }
    sums.flush();
    return reference;
}

// held times u over the sum of those.
void codes_of(const float* held, const float* u, float sum, int64_t k, float* codes) {
    const F16 by = set1_ps(1 / sum);
    auto code = [&](int64_t j, Mask m) {
        return mul_ps(mul_ps(loadu_ps(held + j), maskz_loadu_ps(m, u + j)), by);
    };
    // what will not be read again soon goes past the cache, whole lines at a time
    const int64_t head = std::min<int64_t>(k, -(reinterpret_cast<uintptr_t>(codes) / sizeof(float)) & 15);
    int64_t j = head;
    if (head) mask_storeu_ps(codes, lanes(head), code(0, lanes(head)));
    for (; j + 16 <= k; j += 16) stream_ps(codes + j, code(j, 0xffff));
    if (j < k) mask_storeu_ps(codes + j, lanes(k - j), code(j, lanes(k - j)));
}

void finish(const Scores& s, int64_t first, int64_t last, const float* top, const float* u, float* codes) {
    Aligned<float> held(s.k + 16);
    for (int64_t i = first; i < last; i++) {
        const float sum = expand(s, i, top[i], u, held.data);
        codes_of(held.data, u, sum, s.k, codes + i * s.k);
    }
}

END_VECTOR_CODE

// run(t, first, last) for each thread's stretch of rows.
template <class F>
void stretches(int64_t n, int threads, F&& run) {
    std::atomic<int> next{0};
    in_threads(threads, [&] {
        const int t = next.fetch_add(1);
        run(t, n * t / threads, n * (t + 1) / threads);
    });
}

}  // namespace

extern "C" {

// top (n,): the maximum of each row. totals (k,) += M^T v with v = 2^((top - reference) by); the highest maximum is
// the reference, which is returned in `reference`.
int64_t selfcluster_sinkhorn_start(const float* scores, int64_t n, int64_t k, int64_t stride, float by, float lowest,
                                   int threads, float* top, double* totals, float* reference) try {
    const Scores s{scores, n, k, stride, by, lowest};
    const std::vector<float> ones(k, 1.0f);
    std::vector<double> parts(threads * k, 0.0);
    std::vector<float> references(threads);
    stretches(n, threads, [&](int t, int64_t first, int64_t last) {
        references[t] = start(s, first, last, top, ones.data(), parts.data() + t * k);
    });
    *reference = *std::max_element(references.begin(), references.end());
    for (int t = 0; t < threads; t++) {
        const double fewer = std::exp2((static_cast<double>(references[t]) - *reference) * by);
        for (int64_t j = 0; j < k; j++) totals[j] += fewer * parts[t * k + j];
    }
    return 0;
} catch (const std::exception&) { return -1; }

// totals (k,) += M^T v, with M = exp(max((scores - top) by, lowest)) and v given, or 1 / (M u) where null.
int64_t selfcluster_sinkhorn_columns(const float* scores, int64_t n, int64_t k, int64_t stride, float by, float lowest,
                                     const float* top, const float* u, const float* v, int threads,
                                     double* totals) try {
    const Scores s{scores, n, k, stride, by, lowest};
    std::vector<double> parts(threads * k, 0.0);
    stretches(n, threads, [&](int t, int64_t first, int64_t last) {
        columns(s, first, last, top, u, v, parts.data() + t * k);
    });
    for (int t = 0; t < threads; t++)
        for (int64_t j = 0; j < k; j++) totals[j] += parts[t * k + j];
    return 0;
} catch (const std::exception&) { return -1; }

// codes (n, k): the rows of M times u, scaled to sum 1.
int64_t selfcluster_sinkhorn_codes(const float* scores, int64_t n, int64_t k, int64_t stride, float by, float lowest,
                                   const float* top, const float* u, int threads, float* codes) try {
    const Scores s{scores, n, k, stride, by, lowest};
    stretches(n, threads, [&](int, int64_t first, int64_t last) { finish(s, first, last, top, u, codes); });
    return 0;
} catch (const std::exception&) { return -1; }
}
