// The four transforms of Winograd's convolution F(4 x 4, 3 x 3): Y = A^T [(G g G^T) . (B^T d B)] A (Lavin and Gray 2016).
//
// An image (height, width, channels) is cut into tiles of 4 x 4 outputs, each of which sees 6 x 6 inputs d that begin one
// row and one column before it. What is outside the image is 0. A tile has 36 numbers a channel, and each of them is in
// a plane of its own: (36, tiles, channels), where `apart` is the distance from one plane to the next.
// Images are shared between threads; no result depends on their number.

#include <algorithm>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace {

constexpr int LANES = 8, INPUT = 6, OUTPUT = 4, PLANES = INPUT * INPUT;
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4)));

struct Images {
    int64_t count, height, width, channels;
    int64_t down() const { return (height + OUTPUT - 1) / OUTPUT; }
    int64_t across() const { return (width + OUTPUT - 1) / OUTPUT; }
};

// Each of these multiplies a column of numbers, `s` apart, with a matrix, and writes a column of numbers `t` apart.
struct InputToPlanes {  // B^T
    static constexpr int SIDE = INPUT, BEFORE = 1;
    static void multiply(const Lanes* d, int s, Lanes* v, int t) {
        const Lanes a = d[4 * s] - 4.0f * d[2 * s], b = d[3 * s] - 4.0f * d[s];
        const Lanes c = d[4 * s] - d[2 * s], e = 2.0f * (d[3 * s] - d[s]);
        v[0] = 4.0f * d[0] - 5.0f * d[2 * s] + d[4 * s];
        v[t] = a + b, v[2 * t] = a - b, v[3 * t] = c + e, v[4 * t] = c - e;
        v[5 * t] = 4.0f * d[s] - 5.0f * d[3 * s] + d[5 * s];
    }
};

struct OutputToPlanes {  // A
    static constexpr int SIDE = OUTPUT, BEFORE = 0;
    static void multiply(const Lanes* y, int s, Lanes* m, int t) {
        const Lanes a = y[0] + y[2 * s], b = y[s] + y[3 * s];
        const Lanes c = y[0] + 4.0f * y[2 * s], e = 2.0f * y[s] + 8.0f * y[3 * s];
        m[0] = y[0], m[t] = a + b, m[2 * t] = a - b, m[3 * t] = c + e, m[4 * t] = c - e, m[5 * t] = y[3 * s];
    }
};

struct PlanesToOutput {  // A^T
    static constexpr int SIDE = OUTPUT, BEFORE = 0;
    static constexpr bool ADD = false;
    static void multiply(const Lanes* m, int s, Lanes* y, int t) {
        const Lanes a = m[s] + m[2 * s], b = m[s] - m[2 * s], c = m[3 * s] + m[4 * s], e = m[3 * s] - m[4 * s];
        y[0] = m[0] + a + c, y[t] = b + 2.0f * e, y[2 * t] = a + 4.0f * c, y[3 * t] = b + 8.0f * e + m[5 * s];
    }
};

struct PlanesToInput {  // B; tiles overlap, so they are added
    static constexpr int SIDE = INPUT, BEFORE = 1;
    static constexpr bool ADD = true;
    static void multiply(const Lanes* v, int s, Lanes* d, int t) {
        const Lanes a = v[s] + v[2 * s], b = v[s] - v[2 * s], c = v[3 * s] + v[4 * s], e = v[3 * s] - v[4 * s];
        d[0] = 4.0f * v[0], d[t] = 4.0f * (v[5 * s] - b) - 2.0f * e, d[2 * t] = -5.0f * v[0] - 4.0f * a - c;
        d[3 * t] = b + 2.0f * e - 5.0f * v[5 * s], d[4 * t] = v[0] + a + c, d[5 * t] = v[5 * s];
    }
};

// Where the numbers of a tile are in the image; null outside of it.
template <int SIDE, int BEFORE, class T>
void find(T* image, const Images& of, int64_t row, int64_t column, T** places) {
    for (int r = 0; r < SIDE; ++r) {
        for (int c = 0; c < SIDE; ++c) {
            const int64_t y = OUTPUT * row + r - BEFORE, x = OUTPUT * column + c - BEFORE;
            const bool inside = y >= 0 && y < of.height && x >= 0 && x < of.width;
            places[r * SIDE + c] = inside ? image + (y * of.width + x) * of.channels : nullptr;
        }
    }
}

// run(image, row, column, tile) for all tiles of the images `first` to `last`.
template <class F>
void each_tile(const Images& of, int64_t first, int64_t last, F&& run) {
    const int64_t down = of.down(), across = of.across();
    for (int64_t i = first; i < last; ++i)
        for (int64_t row = 0; row < down; ++row)
            for (int64_t column = 0; column < across; ++column) run(i, row, column, (i * down + row) * across + column);
}

template <class Transform>
void to_planes(const float* images, const Images& of, float* planes, int64_t apart, int64_t first, int64_t last) {
    constexpr int SIDE = Transform::SIDE;
    each_tile(of, first, last, [&](int64_t i, int64_t row, int64_t column, int64_t tile) {
        const float* places[SIDE * SIDE];
        find<SIDE, Transform::BEFORE>(images + i * of.height * of.width * of.channels, of, row, column, places);
        for (int64_t c = 0; c < of.channels; c += LANES) {
            Lanes given[SIDE * SIDE], half[SIDE * INPUT], made[PLANES];
            for (int k = 0; k < SIDE * SIDE; ++k)
                given[k] = places[k] ? *reinterpret_cast<const Lanes*>(places[k] + c) : Lanes{};
            for (int r = 0; r < SIDE; ++r) Transform::multiply(given + r * SIDE, 1, half + r * INPUT, 1);
            for (int q = 0; q < INPUT; ++q) Transform::multiply(half + q, INPUT, made + q, INPUT);
            for (int k = 0; k < PLANES; ++k)
                *reinterpret_cast<Lanes*>(planes + k * apart + tile * of.channels + c) = made[k];
        }
    });
}

template <class Transform>
void to_images(const float* planes, int64_t apart, const Images& of, float* images, int64_t first, int64_t last) {
    constexpr int SIDE = Transform::SIDE;
    const int64_t size = of.height * of.width * of.channels;
    if (Transform::ADD) std::fill(images + first * size, images + last * size, 0.0f);
    each_tile(of, first, last, [&](int64_t i, int64_t row, int64_t column, int64_t tile) {
        float* places[SIDE * SIDE];
        find<SIDE, Transform::BEFORE>(images + i * size, of, row, column, places);
        for (int64_t c = 0; c < of.channels; c += LANES) {
            Lanes given[PLANES], half[INPUT * SIDE], made[SIDE * SIDE];
            for (int k = 0; k < PLANES; ++k)
                given[k] = *reinterpret_cast<const Lanes*>(planes + k * apart + tile * of.channels + c);
            for (int r = 0; r < INPUT; ++r) Transform::multiply(given + r * INPUT, 1, half + r * SIDE, 1);
            for (int q = 0; q < SIDE; ++q) Transform::multiply(half + q, SIDE, made + q, SIDE);
            for (int k = 0; k < SIDE * SIDE; ++k) {
                if (!places[k]) continue;
                Lanes& place = *reinterpret_cast<Lanes*>(places[k] + c);
                place = Transform::ADD ? place + made[k] : made[k];
            }
        }
    });
}

// run(first, last) for each thread's share of the images; 0, or -1 if a thread could not be started.
template <class F>
int64_t in_threads(int64_t images, int threads, F run) {
    const int64_t shares = std::max<int64_t>(1, std::min<int64_t>(threads, images));
    std::vector<std::thread> others;
    int64_t result = 0;
    try {
        for (int64_t t = 1; t < shares; ++t) others.emplace_back(run, images * t / shares, images * (t + 1) / shares);
        run(0, images / shares);
    } catch (const std::exception&) {
        result = -1;
    }
    for (std::thread& other : others) other.join();
    return result;
}

}  // namespace

#define TO_PLANES(name, transform)                                                                                    \
    extern "C" int64_t selfcluster_##name(const float* images, int64_t count, int64_t height, int64_t width,          \
                                          int64_t channels, float* planes, int64_t apart, int threads) {              \
        const Images of{count, height, width, channels};                                                             \
        return in_threads(count, threads, [=](int64_t first, int64_t last) {                                         \
            to_planes<transform>(images, of, planes, apart, first, last);                                            \
        });                                                                                                          \
    }

#define TO_IMAGES(name, transform)                                                                                    \
    extern "C" int64_t selfcluster_##name(float* images, int64_t count, int64_t height, int64_t width,                \
                                          int64_t channels, const float* planes, int64_t apart, int threads) {        \
        const Images of{count, height, width, channels};                                                             \
        return in_threads(count, threads, [=](int64_t first, int64_t last) {                                         \
            to_images<transform>(planes, apart, of, images, first, last);                                            \
        });                                                                                                          \
    }

TO_PLANES(input_to_planes, InputToPlanes)
TO_PLANES(output_to_planes, OutputToPlanes)
TO_IMAGES(planes_to_output, PlanesToOutput)
TO_IMAGES(planes_to_input, PlanesToInput)
