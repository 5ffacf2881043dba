// Bounds of the scores, the candidates they leave, and the exact winner among those.

#include "native.hpp"

namespace selfcluster {

VECTOR_CODE

// Products of some rows with one panel are in `product` (rows, 64): write upper bounds of the scores to `upper`
// (rows, STRIDE) and raise `best` (rows, 16), the lower bounds by lane.
void bound(const int32_t* product, int rows, const Centroids& c, int64_t panel, const Candidates* row, float* upper,
           float* best) {
    const int64_t first = panel * PANEL;
    F16 scale[4], half[4], length[4];
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        scale[g] = load_ps(c.scale.data + first + 16 * g);
        half[g] = load_ps(c.half.data + first + 16 * g);
        length[g] = load_ps(c.length.data + first + 16 * g);
    }
    for (int r = 0; r < rows; r++, product += PANEL, upper += STRIDE, best += 16) {
        const F16 step = set1_ps(row[r].step), slack = set1_ps(row[r].slack);
        F16 most = load_ps(best);
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++) {
            F16 s = mul_ps(cvtepi32_ps(load_si(product + 16 * g)), scale[g]);
            s = fmsub_ps(s, step, half[g]);
            store_ps(upper + 16 * g, fmadd_ps(slack, length[g], s));
            most = max_ps(most, fnmadd_ps(slack, length[g], s));
        }
        store_ps(best, most);
    }
}

// The same products, when the computed score is taken at its word: raise `best` (rows, 16) and set `where` (rows, 16)
// to the first of the 16 centroids that a lane's best came from.
void raise_best(const int32_t* product, int rows, const Centroids& c, int64_t panel, const Rounded* row, float* best,
                int32_t* where) {
    const int64_t first = panel * PANEL;
    F16 scale[4], half[4];
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        scale[g] = load_ps(c.scale.data + first + 16 * g);
        half[g] = load_ps(c.half.data + first + 16 * g);
    }
    for (int r = 0; r < rows; r++, product += PANEL, best += 16, where += 16) {
        const F16 step = set1_ps(row[r].step);
        F16 most = load_ps(best);
        I16 from = load_si(where);
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++) {
            F16 s = mul_ps(cvtepi32_ps(load_si(product + 16 * g)), scale[g]);
            s = fmsub_ps(s, step, half[g]);
            const Mask better = cmp_ps_mask<_CMP_GT_OQ>(s, most);
            most = mask_mov_ps(most, better, s);
            from = mask_set1_epi32(from, better, static_cast<int32_t>(first + 16 * g));
        }
        store_ps(best, most);
        store_si(where, from);
    }
}

// The centroid of the highest of 16 lanes, the lowest number among equals.
int32_t best_lane(const float* best, const int32_t* where) {
    const F16 most = load_ps(best);
    const Mask equal = cmp_ps_mask<_CMP_EQ_OQ>(most, set1_ps(reduce_max_ps(most)));
    int32_t least = equal ? std::numeric_limits<int32_t>::max() : 0;  // none: a row with NaN
    for (uint32_t left = equal; left; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        least = std::min(least, where[lane] + lane);
    }
    return least;
}

// Keep the centroids [first, first + width) whose upper bound reaches the best lower bound.
void screen(const float* upper, const float* best, const Centroids& c, int64_t first, int width, Candidates& row) {
    const float blur = 16 * UNIT * c.largest;  // rounding of |v|^2 / 2 in both bounds
    row.floor = std::max(row.floor, reduce_max_ps(load_ps(best)) - blur);
    const F16 floor = set1_ps(row.floor);
    for (int at = 0; at < width; at += PANEL) {
        uint64_t mask = 0;
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++)
            mask |= static_cast<uint64_t>(cmp_ps_mask<_CMP_GE_OQ>(load_ps(upper + at + 16 * g), floor))
                    << (16 * g);
        for (; mask; mask &= mask - 1) {
            const int lane = at + __builtin_ctzll(mask);
            if (first + lane < c.k) row.add(static_cast<int32_t>(first + lane), upper[lane]);
        }
    }
}

float distance32(const float* x, const float* y, int64_t d) {
    F16 even = setzero_ps(), odd = setzero_ps();
    int64_t l = 0;
    for (; l + 32 <= d; l += 32) {
        F16 gap = sub_ps(loadu_ps(x + l), loadu_ps(y + l));
        F16 next = sub_ps(loadu_ps(x + l + 16), loadu_ps(y + l + 16));
        even = fmadd_ps(gap, gap, even);
        odd = fmadd_ps(next, next, odd);
    }
    for (; l < d; l += 16) {
        const Mask m = lanes(d - l);
        F16 gap = sub_ps(maskz_loadu_ps(m, x + l), maskz_loadu_ps(m, y + l));
        even = fmadd_ps(gap, gap, even);
    }
    return reduce_add_ps(add_ps(even, odd));
}

double distance64(const float* x, const float* y, int64_t d) {
    D8 sum = setzero_pd();
    for (int64_t l = 0; l < d; l += 8) {
        Mask m = d - l >= 8 ? 0xff : (1u << (d - l)) - 1;
        D8 gap = sub_pd(maskz_loadu_pd(m, x + l),
                                    maskz_loadu_pd(m, y + l));
        sum = fmadd_pd(gap, gap, sum);
    }
    return reduce_add_pd(sum);
}

double product64(const float* x, const float* y, int64_t d) {
    D8 sum = setzero_pd();
    for (int64_t l = 0; l < d; l += 8) {
        Mask m = d - l >= 8 ? 0xff : (1u << (d - l)) - 1;
        sum = fmadd_pd(maskz_loadu_pd(m, x + l),
                              maskz_loadu_pd(m, y + l), sum);
    }
    return reduce_add_pd(sum);
}

// Ask for a row's first candidates before they are needed: centroids in float32 seldom fit the second-level cache.
void fetch(const Centroids& c, const Candidates& row) {
    for (int i = 0; i < std::min(row.count, 4); i++) fetch(c.raw + c.number(row.number[i]) * c.d, c.d);
}

// The exact winner among a row's candidates; returns how many distances were computed.
int64_t settle(const float* x, const Centroids& c, const Candidates& row, int64_t* label, float* distance) {
    if (row.count == 1 && std::isfinite(row.square)) {
        *label = c.number(row.number[0]);
        *distance = distance32(x, c.raw + *label * c.d, c.d);
        return 1;
    }
    const bool wild = !std::isfinite(row.square);  // too large for float32's bounds
    const int64_t many = row.full || row.count == 0 || wild ? c.k : row.count;
    const bool all = many == c.k && (row.count != c.k || wild);
    auto number = [&](int64_t i) { return c.number(all ? i : row.number[i]); };
    const float doubt = 4 * (c.d / 16 + 16) * UNIT;       // relative error of two float32 distances, and some
    const float blur = 2 * (c.d + 16) * UNIT * row.square;  // of the bound |u|^2 - 2 s
    float few[LIST];
    std::vector<float> more(all ? many : 0);
    float* found = all ? more.data() : few;
    std::fill(found, found + many, INFINITE);
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

}  // namespace selfcluster
