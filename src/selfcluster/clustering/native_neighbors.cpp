// The k nearest rows of a database, exactly: 8-bit products with a proven error bound propose, float64 decides.
//
// The scores s = u.v - |v|^2 / 2 (distance) or u.v + m.v (inner product), with u = x - m and v = y - m, differ from the
// wanted ones by a constant of the query. A database row is kept where its upper bound reaches a floor that k rows are
// known to reach, the k-th largest lower bound so far. When a query's list is full, or the database done, the rows of
// the highest upper bounds are scored in float64 until the next cannot be among the k best. A panel of 64 database
// rows stays in the first-level cache while all queries of a block, in the second-level cache, pass by.
//
// Letters: n queries, m database rows, d dimensions, p = d rounded up to 64, k neighbors.

#include "native.hpp"

using namespace selfcluster;

namespace {

constexpr int64_t BLOCK = 480;         // queries, a multiple of 4, 6 and 32
constexpr int64_t BLOCK_BYTES = 1 << 18;  // of rounded queries: a quarter of a second-level cache

struct Database {
    const float* y;
    int64_t first, d, k;  // `first`: the number of y's first row
    Score score;
    Centroids packed;
    float blur;  // rounding of what all scores add
    Database(const float* y_, int64_t m, int64_t d_, int64_t first_, int64_t k_, Score score_, int level,
             int threads)
        : y(y_), first(first_), d(d_), k(k_), score(score_), packed(y_, m, d_, level) {
        pack(packed, score, threads);
        blur = 16 * UNIT * packed.largest;
    }
};

struct Candidate {
    float upper, lower;
    int32_t number;
};

struct Query : Rounded {
    const float* x;
    double* values;    // (k,) the best so far, falling; the wanted scores, minus infinity where there is none
    int64_t* indices;  // (k,)
    Candidate* list;   // (capacity,)
    int64_t capacity;
    int64_t count;
    double offset;  // the wanted score is `times` s + offset
    double times;
    float floor;

    void begin(const Database& base) {
        const float* middle = base.packed.middle.data;
        times = base.score == DISTANCE ? 2 : 1;
        offset = base.score == DISTANCE ? -distance64(x, middle, base.d) : product64(x, middle, base.d);
        count = 0;
        floor = -INFINITE;
        rise(base);
    }

    // The k-th best so far in the scores' unit; what is lower by more than rounding is out.
    double least(const Database& base) const { return (values[base.k - 1] - offset) / times; }
    void rise(const Database& base) {
        const double s = least(base);
        const double rounding = 4 * UNIT * (std::fabs(s) + std::fabs(offset)) + base.blur;
        if (s > -std::numeric_limits<double>::infinity()) floor = std::max(floor, static_cast<float>(s - rounding));
    }

    // Best first; equals in the order of their numbers.
    void insert(double value, int64_t index, int64_t k) {
        if (value < values[k - 1] || (value == values[k - 1] && index > indices[k - 1] && indices[k - 1] >= 0)) return;
        int64_t at = k - 1;
        for (; at > 0 && (value > values[at - 1] || (value == values[at - 1] && index < indices[at - 1])); at--) {
            values[at] = values[at - 1];
            indices[at] = indices[at - 1];
        }
        values[at] = value;
        indices[at] = index;
    }

    void settle(const Database& base) {
        std::sort(list, list + count, [](const Candidate& a, const Candidate& b) {
            return a.upper > b.upper || (a.upper == b.upper && a.number < b.number);
        });
        for (int64_t i = 0; i < count && list[i].upper >= floor; i++) {
            if (i + 2 < count)
                for (int64_t l = 0; l < base.d; l += 16) __builtin_prefetch(base.y + list[i + 2].number * base.d + l);
            const float* y = base.y + list[i].number * base.d;
            insert(base.score == DISTANCE ? -distance64(x, y, base.d) : product64(x, y, base.d),
                   base.first + list[i].number, base.k);
            rise(base);
        }
        count = 0;
    }

    // Make room: raise the floor to the k-th largest lower bound; if that helps little, score exactly now.
    void tighten(const Database& base, std::vector<float>& lower) {
        lower.resize(count);
        for (int64_t i = 0; i < count; i++) lower[i] = list[i].lower;
        std::nth_element(lower.begin(), lower.begin() + base.k - 1, lower.end(), std::greater<float>());
        floor = std::max(floor, lower[base.k - 1] - 2 * base.blur);
        int64_t kept = 0;
        for (int64_t i = 0; i < count; i++)
            if (list[i].upper >= floor) list[kept++] = list[i];
        count = kept;
        if (count > capacity / 4 * 3) settle(base);
    }
};

VECTOR_CODE

// Products of some queries with one panel are in `product` (rows, 64): list what reaches the queries' floors.
void screen(const int32_t* product, int rows, const Database& base, int64_t panel, Query* query,
            std::vector<float>& scratch) {
    const Centroids& c = base.packed;
    const int64_t first = panel * PANEL;
    F16 scale[4], half[4], length[4], upper[4];
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        scale[g] = load_ps(c.scale.data + first + 16 * g);
        half[g] = load_ps(c.half.data + first + 16 * g);
        length[g] = load_ps(c.length.data + first + 16 * g);
    }
    for (int r = 0; r < rows; r++, product += PANEL, query++) {
        const F16 step = set1_ps(query->step), slack = set1_ps(query->slack);
        const F16 floor = set1_ps(query->floor);
        uint64_t mask = 0;
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++) {
            const F16 s = mul_ps(cvtepi32_ps(load_si(product + 16 * g)), scale[g]);
            upper[g] = fmadd_ps(slack, length[g], fmsub_ps(s, step, half[g]));
            mask |= static_cast<uint64_t>(cmp_ps_mask<_CMP_GE_OQ>(upper[g], floor)) << (16 * g);
        }
        if (!mask) continue;
        alignas(64) float high[PANEL], low[PANEL];
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++) {
            const F16 twice = mul_ps(set1_ps(-2), slack);
            store_ps(high + 16 * g, upper[g]);
            store_ps(low + 16 * g, fmadd_ps(twice, length[g], upper[g]));
        }
        for (; mask; mask &= mask - 1) {
            const int lane = __builtin_ctzll(mask);
            if (first + lane >= c.k || high[lane] < query->floor) continue;
            if (query->count == query->capacity) query->tighten(base, scratch);
            query->list[query->count++] = {high[lane], low[lane], static_cast<int32_t>(first + lane)};
        }
    }
}

END_VECTOR_CODE

struct Searcher {
    const Database& base;
    const int level;
    const int64_t capacity;
    Aligned<float> shifted;
    Aligned<uint8_t> rounded;
    Aligned<int32_t> product;
    std::vector<Candidate> lists;
    std::vector<Query> queries;
    std::vector<float> scratch;

    Searcher(const Database& base_, int level_, int64_t block)
        : base(base_), level(level_), capacity(8 * base.k + 256), shifted(base.packed.p + 16),
          rounded((block + AMX_ROWS + VNNI_ROWS) * base.packed.p), product(AMX_ROWS * PANEL),
          lists(block * capacity), queries(block) {
        if (level == AMX) tile_configure();
    }
    ~Searcher() {
        if (level == AMX) tile_release();
    }

    void block(const float* x, int count, double* values, int64_t* indices) {
        const Centroids& c = base.packed;
        for (int r = 0; r < count; r++) {
            Query& query = queries[r];
            query.x = x + r * base.d;
            query.values = values + r * base.k;
            query.indices = indices + r * base.k;
            query.list = lists.data() + r * capacity;
            query.capacity = capacity;
            query.begin(base);
            round_row(query.x, c, shifted.data, rounded.data + r * c.p, query);
        }
        const int tall = rows_of_a_product(level);
        for (int64_t panel = 0; panel < c.panels; panel++)
            for (int r = 0; r < count; r += tall) {
                multiply(level, rounded.data + r * c.p, c, panel, product.data);
                screen(product.data, std::min(tall, count - r), base, panel, queries.data() + r, scratch);
            }
        for (int r = 0; r < count; r++) queries[r].settle(base);
    }
};

}  // namespace

extern "C" {

// Improve the k best (values, indices) (n, k) of queries x (n, d) by the database rows y (m, d), numbered from `first`.
// Values are inner products, or negative squared distances; start from minus infinity and -1.
int64_t selfcluster_neighbors(const float* x, int64_t n, int64_t d, const float* y, int64_t m, int64_t first,
                               int64_t k, int inner, int level, int threads, double* values, int64_t* indices) try {
    const Database base(y, m, d, first, k, inner ? PRODUCT : DISTANCE, level, threads);
    const int64_t most = std::max<int64_t>(AMX_ROWS, std::min(BLOCK, BLOCK_BYTES / base.packed.p));
    const int64_t blocks = ((n + most - 1) / most + threads - 1) / threads * threads;  // as many for each thread
    const int64_t size = (n + blocks - 1) / blocks;
    std::atomic<int64_t> next{0};
    in_threads(threads, [&] {
        Searcher searcher(base, level, size);
        for (int64_t start; (start = next.fetch_add(size)) < n;)
            searcher.block(x + start * d, static_cast<int>(std::min(size, n - start)), values + start * k,
                           indices + start * k);
    });
    return 0;
} catch (const std::exception&) { return -1; }
}
