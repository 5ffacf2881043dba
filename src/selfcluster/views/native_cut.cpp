// Crop and antialiased resize of one color image, by the fixed-point arithmetic of Pillow and of torch's uint8 resize.
//
// Each axis is resampled by weights of 16 bits, first along the rows. Between the passes values are rounded to 8 bits.
// All sums are exact, so the result equals torch's to the bit. The first pass makes one output pixel of four rows at
// once, because they have the same weights; a pixel then has four bytes. The second pass writes one plane a channel.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <vector>

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))

namespace {

constexpr int ROWS = 4;     // rows at a time in the first pass
constexpr int TAPS = 4;     // input pixels in one product of the first pass
constexpr int READ = 16;    // bytes that one product loads; TAPS pixels are 12 of them
constexpr int BITS = 22;    // most binary places of a weight

struct Image {
    const uint8_t* pixels;         // (height, width, 3)
    int64_t height, width, stride;  // stride: bytes from one row to the next
};

double triangle(double x) { return std::max(0.0, 1.0 - std::abs(x)); }

double cubic(double x) {  // Keys 1981, with a = -1/2
    const double a = -0.5;
    x = std::abs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? ((a * x - 5 * a) * x + 8 * a) * x - 4 * a : 0.0;
}

// Which pixels of an axis of `extent` make outputs `start` to `start + count` of `size`, and with which weights.
struct Axis {
    int64_t count, taps;           // taps: weights of each output, a multiple of TAPS; those behind its own are 0
    int bits;                      // the weights are multiplied by 2^bits, as many as the largest of all `size` allows
    std::vector<int64_t> first;    // (count,) the first pixel
    std::vector<int16_t> weights;  // (count, taps)

    Axis(int64_t extent, int64_t size, int64_t start, int64_t count, bool is_cubic) : count(count), first(count) {
        const double scale = static_cast<double>(extent) / static_cast<double>(size), narrow = 1.0 / std::max(scale, 1.0);
        const double support = (is_cubic ? 2.0 : 1.0) * std::max(scale, 1.0);
        const int64_t most = static_cast<int64_t>(std::ceil(support)) * 2 + 1;
        std::vector<double> exact(size * most);
        std::vector<int64_t> own(size);
        double largest = 0;
        for (int64_t i = 0; i < size; ++i) {
            const double center = scale * (static_cast<double>(i) + 0.5);
            const int64_t low = std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
            const int64_t high = std::min<int64_t>(static_cast<int64_t>(center + support + 0.5), extent);
            own[i] = std::clamp<int64_t>(high - low, 0, most);
            double* row = &exact[i * most];
            double total = 0;
            for (int64_t j = 0; j < own[i]; ++j) {
                const double x = (static_cast<double>(j + low) - center + 0.5) * narrow;
                total += row[j] = is_cubic ? cubic(x) : triangle(x);
            }
            for (int64_t j = 0; j < own[i]; ++j) largest = std::max(largest, row[j] /= total);
            if (i >= start && i < start + count) first[i - start] = low;
        }
        for (bits = 0; bits < BITS && static_cast<int>(0.5 + largest * (1 << (bits + 1))) < 1 << 15;) ++bits;
        taps = (*std::max_element(own.begin(), own.end()) + TAPS - 1) / TAPS * TAPS;
        weights.resize(count * taps);
        for (int64_t i = 0; i < count; ++i) {
            for (int64_t j = 0; j < own[start + i]; ++j) {
                const double w = exact[(start + i) * most + j] * (1 << bits);
                weights[i * taps + j] = static_cast<int16_t>(w < 0 ? w - 0.5 : w + 0.5);
            }
        }
    }
};

// One output pixel of each of ROWS rows, 4 bytes each, from the input pixels `offset` bytes into the rows.
AVX2 inline __m128i pixel(const uint8_t* const* rows, int64_t offset, const int32_t* weights, int64_t groups,
                          __m256i half, __m128i bits) {
    const __m256i spread = _mm256_setr_epi8(                                    // to 16 bits, in pairs of a channel
        0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,               // pixels 0 and 1
        6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);            // pixels 2 and 3
    __m256i sums[ROWS] = {half, half, half, half};
    for (int64_t g = 0; g < groups; ++g) {
        const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + 8 * g));
        for (int r = 0; r < ROWS; ++r) {
            const auto* at = reinterpret_cast<const __m128i*>(rows[r] + offset + 3 * TAPS * g);
            const __m256i four = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(at)), spread);
            sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(four, w));
        }
    }
    __m128i done[ROWS];
    for (int r = 0; r < ROWS; ++r) {
        const __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums[r]), _mm256_extracti128_si256(sums[r], 1));
        done[r] = _mm_sra_epi32(sum, bits);
    }
    return _mm_packus_epi16(_mm_packs_epi32(done[0], done[1]), _mm_packs_epi32(done[2], done[3]));
}

// The first pass: out (height, columns.count, 4).
AVX2 void along_rows(const Image& image, const Axis& columns, bool flip, uint8_t* out) {
    const int64_t groups = columns.taps / TAPS, n = columns.count;
    std::vector<int32_t> weights(8 * n * groups);
    for (int64_t i = 0; i < n * groups; ++i) {  // w0 w1 four times, w2 w3 four times
        int32_t pairs[2];
        std::memcpy(pairs, &columns.weights[i * TAPS], sizeof pairs);
        std::fill_n(&weights[8 * i], 4, pairs[0]), std::fill_n(&weights[8 * i + 4], 4, pairs[1]);
    }
    const int64_t bytes = 3 * image.width, readable = bytes + 3 * columns.taps + READ;  // products read past a row
    const uint8_t* end = image.pixels + (image.height - 1) * image.stride + bytes;
    std::vector<uint8_t> copies;  // of the rows at the end of the memory
    const int32_t h = 1 << (columns.bits - 1);
    const __m256i half = _mm256_setr_epi32(h, h, h, 0, 0, 0, 0, 0);
    const __m128i bits = _mm_cvtsi32_si128(columns.bits);
    for (int64_t y = 0; y < image.height; y += ROWS) {
        const uint8_t* rows[ROWS];
        uint8_t* made[ROWS];
        for (int r = 0; r < ROWS; ++r) {
            const int64_t row = std::min(y + r, image.height - 1);  // the last one may be made again
            rows[r] = image.pixels + row * image.stride, made[r] = out + row * n * 4;
            if (end - rows[r] >= readable) continue;
            copies.resize(ROWS * readable);
            rows[r] = static_cast<uint8_t*>(std::memcpy(&copies[r * readable], rows[r], bytes));
        }
        for (int64_t x = 0; x < n; ++x) {
            const __m128i four = pixel(rows, 3 * columns.first[x], &weights[8 * x * groups], groups, half, bits);
            int32_t parts[ROWS];
            _mm_storeu_si128(reinterpret_cast<__m128i*>(parts), four);
            for (int r = 0; r < ROWS; ++r) std::memcpy(made[r] + 4 * (flip ? n - 1 - x : x), &parts[r], 4);
        }
    }
}

// Four output pixels of the second pass, 4 bytes each.
AVX2 inline __m128i four_pixels(const uint8_t* rows, int64_t stride, const int16_t* weights, int64_t taps, __m256i half,
                                __m128i bits) {
    __m256i low = half, high = half;  // 32 bits a sum: pixels 0 and 2, pixels 1 and 3
    for (int64_t j = 0; j < taps; j += 2) {
        int32_t pair;
        std::memcpy(&pair, weights + j, sizeof pair);
        const __m256i w = _mm256_set1_epi32(pair);
        const auto *one = reinterpret_cast<const __m128i*>(rows + j * stride),
                   *two = reinterpret_cast<const __m128i*>(rows + (j + 1) * stride);
        const __m256i a = _mm256_cvtepu8_epi16(_mm_loadu_si128(one)), b = _mm256_cvtepu8_epi16(_mm_loadu_si128(two));
        low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), w));
        high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), w));
    }
    const __m256i sums = _mm256_packs_epi32(_mm256_sra_epi32(low, bits), _mm256_sra_epi32(high, bits));
    return _mm_packus_epi16(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
}

// The second pass: out (3, rows.count, width) from `between`, whose first row is the image's row `begin`.
AVX2 void along_columns(const uint8_t* between, int64_t begin, int64_t width, const Axis& rows, uint8_t* out) {
    const __m256i half = _mm256_set1_epi32(1 << (rows.bits - 1));
    const __m128i bits = _mm_cvtsi32_si128(rows.bits);
    const __m128i by_channel = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const int64_t stride = 4 * width, plane = rows.count * width;
    for (int64_t y = 0; y < rows.count; ++y) {
        const uint8_t* from = between + (rows.first[y] - begin) * stride;
        const int16_t* weights = &rows.weights[y * rows.taps];
        int64_t taps = rows.taps;
        while (taps > 2 && weights[taps - 1] == 0 && weights[taps - 2] == 0) taps -= 2;
        for (int64_t x = 0; x < width; x += 16) {
            __m128i p[4];
            for (int k = 0; k < 4; ++k) {
                const __m128i four = four_pixels(from + 4 * x + 16 * k, stride, weights, taps, half, bits);
                p[k] = _mm_shuffle_epi8(four, by_channel);
            }
            const __m128i red_green[2] = {_mm_unpacklo_epi32(p[0], p[1]), _mm_unpacklo_epi32(p[2], p[3])};
            const __m128i blue[2] = {_mm_unpackhi_epi32(p[0], p[1]), _mm_unpackhi_epi32(p[2], p[3])};
            const __m128i channels[3] = {_mm_unpacklo_epi64(red_green[0], red_green[1]),
                                         _mm_unpackhi_epi64(red_green[0], red_green[1]),
                                         _mm_unpacklo_epi64(blue[0], blue[1])};
            for (int c = 0; c < 3; ++c) {
                uint8_t* to = out + c * plane + y * width + x;
                if (width - x >= 16) {
                    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), channels[c]);
                } else {
                    uint8_t last[16];
                    _mm_storeu_si128(reinterpret_cast<__m128i*>(last), channels[c]);
                    std::memcpy(to, last, width - x);
                }
            }
        }
    }
}

}  // namespace

extern "C" {

// out (3, h, w): of an image resized to (tall, broad) the part from (top, left), mirrored left to right if `flip`.
// Returns 0, or -1: no memory.
int64_t selfcluster_cut(const uint8_t* pixels, int64_t height, int64_t width, int64_t stride, int64_t tall,
                        int64_t broad, int64_t top, int64_t left, int64_t h, int64_t w, int is_cubic, int flip,
                        uint8_t* out) try {
    const Axis columns(width, broad, left, w, is_cubic), rows(height, tall, top, h, is_cubic);
    const int64_t begin = rows.first.front(), end = std::min(height, rows.first.back() + rows.taps);
    // kept by the thread: large new memory would have to be cleared for every image. The weights behind an output's own
    // are 0, so the rows that they read have to exist only
    static thread_local std::vector<uint8_t> between;
    between.resize(4 * w * (end - begin + rows.taps) + 4 * READ);
    along_rows({pixels + begin * stride, end - begin, width, stride}, columns, flip, between.data());
    along_columns(between.data(), begin, w, rows, out);
    return 0;
} catch (const std::exception&) { return -1; }
}
