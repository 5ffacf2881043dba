// Rounding to 8 bits, or 7: centroids (or a database's rows) into panels, rows one by one.

#include "native.hpp"

#include <mutex>

namespace selfcluster {

namespace {

constexpr int64_t SAMPLE = 4096;  // rows that the middle is taken from: any middle keeps bounds true, a near one tight

void find_middle(Centroids& c) {
    const int64_t step = (c.k + SAMPLE - 1) / SAMPLE;
    std::vector<double> sum(c.d, 0.0);
    for (int64_t j = 0; j < c.k; j += step)
        for (int64_t l = 0; l < c.d; l++) sum[l] += c.raw[j * c.d + l];
    for (int64_t l = 0; l < c.d; l++) c.middle.data[l] = static_cast<float>(sum[l] / ((c.k + step - 1) / step));
}

}  // namespace

// Padding of the last panel: an upper bound of minus infinity.
void pad(Centroids& c) {
    for (int64_t j = c.k; j < c.panels * PANEL; j++) c.half.data[j] = INFINITE;
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

namespace {

// One centroid, v in `v` (p,); raises `worst`.
void pack_one(Centroids& c, int64_t j, Score score, float* v, float& worst) {
    const float* raw = c.raw + j * c.d;
    F16 largest = setzero_ps();
    D8 square = setzero_pd(), along = setzero_pd();
    for (int64_t l = 0; l < c.d; l += 16) {
        const Mask m = lanes(c.d - l);
        const F16 middle = maskz_loadu_ps(m, c.middle.data + l);
        const F16 gap = sub_ps(maskz_loadu_ps(m, raw + l), middle);
        storeu_ps(v + l, gap);
        largest = max_ps(largest, abs_ps(gap));
        const D8 low = low_pd(gap),
                      high = high_pd(gap);
        square = fmadd_pd(low, low, fmadd_pd(high, high, square));
        along = fmadd_pd(low, low_pd(middle), along);
        along = fmadd_pd(high, high_pd(middle), along);
    }
    const float most = reduce_max_ps(largest);
    const float step = most / c.reach, inverse = most > 1e-30f ? c.reach / most : 0;
    const F16 by = set1_ps(inverse), back = set1_ps(step);
    F16 lost = setzero_ps();
    I16 total = setzero_si();
    int8_t* to = c.packed.data + (j / TILE) * TILE * c.p + (j % TILE) * 4;
    for (int64_t l = 0; l < c.p; l += 16, to += 256) {
        const F16 gap = loadu_ps(v + l);  // zero beyond d
        const I16 q = cvtps_epi32(mul_ps(gap, by));
        const F16 off = fnmadd_ps(cvtepi32_ps(q), back, gap);
        lost = fmadd_ps(off, off, lost);
        total = add_epi32(total, q);
        alignas(16) int8_t bytes[16];
        _mm_store_si128(reinterpret_cast<__m128i*>(bytes), cvtepi32_epi8(q));
        for (int g = 0; g < 4; g++) std::memcpy(to + 64 * g, bytes + 4 * g, 4);
    }
    const double all = reduce_add_pd(square);
    c.bias.data[j] = -(c.reach + 1) * reduce_add_epi32(total);
    c.scale.data[j] = step;
    c.half.data[j] = static_cast<float>(score == DISTANCE ? all / 2 : -reduce_add_pd(along));
    c.length.data[j] = static_cast<float>(std::sqrt(all) * (1 + 1e-6));
    if (all > 0)  // v is a float32 difference, `lost` a float32 sum
        worst = std::max(worst, static_cast<float>(std::sqrt(reduce_add_ps(lost) / all) * (1 + (c.d + 16) * UNIT)
                                                   + 4 * UNIT));
}

}  // namespace

// One row: u = x - m rounded to q, stored as q + reach + 1.
void round_row(const float* x, const Centroids& c, float* u, uint8_t* to, Rounded& row) {
    F16 largest = setzero_ps(), square = setzero_ps();
    for (int64_t l = 0; l < c.d; l += 16) {
        const Mask m = lanes(c.d - l);
        F16 v = sub_ps(maskz_loadu_ps(m, x + l), maskz_loadu_ps(m, c.middle.data + l));
        storeu_ps(u + l, v);
        largest = max_ps(largest, abs_ps(v));
        square = fmadd_ps(v, v, square);
    }
    float most = reduce_max_ps(largest);
    float step = most / c.reach, inverse = most > 1e-30f ? c.reach / most : 0;
    F16 by = set1_ps(inverse), back = set1_ps(step);
    F16 lost = setzero_ps(), kept = setzero_ps();
    for (int64_t l = 0; l < c.p; l += 16) {
        F16 v = loadu_ps(u + l);  // zero beyond d
        I16 q = cvtps_epi32(mul_ps(v, by));
        F16 rounded = mul_ps(cvtepi32_ps(q), back), gap = sub_ps(v, rounded);
        lost = fmadd_ps(gap, gap, lost);
        kept = fmadd_ps(rounded, rounded, kept);
        __m128i bytes = cvtepi32_epi8(add_epi32(q, set1_epi32(c.reach + 1)));
        _mm_store_si128(reinterpret_cast<__m128i*>(to + l), bytes);
    }
    const float safe = 1 + (c.d + 16) * UNIT;  // the norms are float32 sums themselves
    float length = std::sqrt(reduce_add_ps(kept)) * safe;
    row.square = reduce_add_ps(square);
    row.step = step;
    row.slack = std::sqrt(reduce_add_ps(lost)) * safe + length * (c.worst + 16 * UNIT);
}

END_VECTOR_CODE

void pack(Centroids& c, Score score, int threads) {
    find_middle(c);
    pad(c);
    std::atomic<int64_t> next{0};
    std::mutex merging;
    in_threads(threads, [&] {
        Aligned<float> v(c.p + 16);
        float worst = 0;
        for (int64_t panel; (panel = next.fetch_add(1)) < c.panels;)
            for (int64_t j = panel * PANEL; j < std::min((panel + 1) * PANEL, c.k); j++)
                pack_one(c, j, score, v.data, worst);
        const std::lock_guard<std::mutex> only(merging);
        c.worst = std::max(c.worst, worst);
    });
    for (int64_t j = 0; j < c.k; j++) c.largest = std::max(c.largest, std::fabs(c.half.data[j]));
}

}  // namespace selfcluster
