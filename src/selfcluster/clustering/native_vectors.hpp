// Sixteen lanes at a time, under the names of Intel's intrinsics without their prefix: AVX512, or two halves in AVX2.
//
// The kernels are written once. With -DNARROW every vector is a pair of 256-bit registers, and the library runs on a
// processor with AVX2 and FMA only.

#pragma once

#include <cstdint>

#include <immintrin.h>

#ifdef NARROW
#define VECTOR_SET "avx2,fma"
#else
#define VECTOR_SET "avx512f,avx512bw,avx512vl,avx512dq"
#endif

#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define PUSH_TARGET(set) PRAGMA(clang attribute push(__attribute__((target(set))), apply_to = function))
#define END_VECTOR_CODE _Pragma("clang attribute pop")
#else
#define PUSH_TARGET(set) _Pragma("GCC push_options") PRAGMA(GCC target(set))
#define END_VECTOR_CODE _Pragma("GCC pop_options")
#endif
#define VECTOR_CODE PUSH_TARGET(VECTOR_SET)
#define INLINE inline __attribute__((always_inline))

namespace selfcluster {

VECTOR_CODE

#ifdef NARROW

struct F16 { __m256 a, b; };   // 16 floats
struct I16 { __m256i a, b; };  // 16 integers of 32 bits, 32 of 16, or 64 of 8
struct D8 { __m256d a, b; };   // 8 doubles
using Mask = uint32_t;         // the lowest 16 bits, one a lane

INLINE __m256i lanes_of(Mask m) {  // all ones in the lanes of the lowest 8 bits
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(m)), bit), bit);
}

INLINE F16 setzero_ps() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INLINE F16 set1_ps(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE F16 load_ps(const float* p) { return {_mm256_load_ps(p), _mm256_load_ps(p + 8)}; }
INLINE F16 loadu_ps(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE F16 maskz_loadu_ps(Mask m, const float* p) {
    if (m == 0xffff) return loadu_ps(p);
    return {_mm256_maskload_ps(p, lanes_of(m)), _mm256_maskload_ps(p + 8, lanes_of(m >> 8))};
}
INLINE void store_ps(float* p, F16 x) { _mm256_store_ps(p, x.a), _mm256_store_ps(p + 8, x.b); }
INLINE void storeu_ps(float* p, F16 x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
INLINE void stream_ps(float* p, F16 x) { _mm256_stream_ps(p, x.a), _mm256_stream_ps(p + 8, x.b); }
INLINE void mask_storeu_ps(float* p, Mask m, F16 x) {
    _mm256_maskstore_ps(p, lanes_of(m), x.a), _mm256_maskstore_ps(p + 8, lanes_of(m >> 8), x.b);
}
INLINE F16 add_ps(F16 x, F16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
INLINE F16 sub_ps(F16 x, F16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
INLINE F16 mul_ps(F16 x, F16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
INLINE F16 max_ps(F16 x, F16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
INLINE F16 fmadd_ps(F16 x, F16 y, F16 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
INLINE F16 fmsub_ps(F16 x, F16 y, F16 z) { return {_mm256_fmsub_ps(x.a, y.a, z.a), _mm256_fmsub_ps(x.b, y.b, z.b)}; }
INLINE F16 fnmadd_ps(F16 x, F16 y, F16 z) {
    return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
INLINE F16 abs_ps(F16 x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
INLINE F16 mask_mov_ps(F16 x, Mask m, F16 y) {
    return {_mm256_blendv_ps(x.a, y.a, _mm256_castsi256_ps(lanes_of(m))),
            _mm256_blendv_ps(x.b, y.b, _mm256_castsi256_ps(lanes_of(m >> 8)))};
}
INLINE F16 round_ps(F16 x) { return {_mm256_round_ps(x.a, 8), _mm256_round_ps(x.b, 8)}; }
INLINE F16 cvtepi32_ps(I16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
INLINE I16 cvtps_epi32(F16 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
template <int C> INLINE Mask cmp_ps_mask(F16 x, F16 y) {
    return static_cast<Mask>(_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, C))) |
           static_cast<Mask>(_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, C))) << 8;
}
INLINE float reduce_max_ps(F16 x) {
    __m256 m = _mm256_max_ps(x.a, x.b);
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}
INLINE float reduce_add_ps(F16 x) {
    __m256 m = _mm256_add_ps(x.a, x.b);
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}
// 2^n x for whole n in [-126, 127]
INLINE F16 scalef_ps(F16 x, F16 n) {
    const I16 e = cvtps_epi32(n);
    const __m256i one = _mm256_set1_epi32(127);
    return {_mm256_mul_ps(x.a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e.a, one), 23))),
            _mm256_mul_ps(x.b, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e.b, one), 23)))};
}

INLINE I16 setzero_si() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
INLINE I16 set1_epi32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
INLINE I16 set1_epi16(int16_t x) { return {_mm256_set1_epi16(x), _mm256_set1_epi16(x)}; }
INLINE I16 load_si(const void* p) {
    const __m256i* from = static_cast<const __m256i*>(p);
    return {_mm256_load_si256(from), _mm256_load_si256(from + 1)};
}
INLINE void store_si(void* p, I16 x) {
    __m256i* to = static_cast<__m256i*>(p);
    _mm256_store_si256(to, x.a), _mm256_store_si256(to + 1, x.b);
}
INLINE I16 add_epi32(I16 x, I16 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
INLINE I16 add_epi16(I16 x, I16 y) { return {_mm256_add_epi16(x.a, y.a), _mm256_add_epi16(x.b, y.b)}; }
INLINE I16 madd_epi16(I16 x, I16 y) { return {_mm256_madd_epi16(x.a, y.a), _mm256_madd_epi16(x.b, y.b)}; }
INLINE I16 maddubs_epi16(I16 x, I16 y) { return {_mm256_maddubs_epi16(x.a, y.a), _mm256_maddubs_epi16(x.b, y.b)}; }
INLINE I16 mask_set1_epi32(I16 x, Mask m, int32_t y) {
    const __m256i all = _mm256_set1_epi32(y);
    return {_mm256_blendv_epi8(x.a, all, lanes_of(m)), _mm256_blendv_epi8(x.b, all, lanes_of(m >> 8))};
}
INLINE int32_t reduce_add_epi32(I16 x) {
    alignas(64) int32_t each[16];
    store_si(each, x);
    int32_t sum = 0;
    for (int32_t e : each) sum += e;
    return sum;
}
INLINE __m128i cvtepi32_epi8(I16 x) {
    const __m256i low = _mm256_set1_epi32(255);
    const __m256i words = _mm256_permute4x64_epi64(
        _mm256_packus_epi32(_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low)), 0xd8);
    return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

INLINE D8 setzero_pd() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
INLINE D8 widened(__m256 x) {
    return {_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))};
}
INLINE D8 low_pd(F16 x) { return widened(x.a); }
INLINE D8 high_pd(F16 x) { return widened(x.b); }
INLINE D8 maskz_loadu_pd(Mask m, const float* p) {  // 8 floats
    return widened((m & 0xff) == 0xff ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, lanes_of(m)));
}
INLINE D8 sub_pd(D8 x, D8 y) { return {_mm256_sub_pd(x.a, y.a), _mm256_sub_pd(x.b, y.b)}; }
INLINE D8 fmadd_pd(D8 x, D8 y, D8 z) { return {_mm256_fmadd_pd(x.a, y.a, z.a), _mm256_fmadd_pd(x.b, y.b, z.b)}; }
INLINE double reduce_add_pd(D8 x) {
    const __m256d m = _mm256_add_pd(x.a, x.b);
    const __m128d h = _mm_add_pd(_mm256_castpd256_pd128(m), _mm256_extractf128_pd(m, 1));
    return _mm_cvtsd_f64(_mm_add_sd(h, _mm_unpackhi_pd(h, h)));
}

#else

using F16 = __m512;
using I16 = __m512i;
using D8 = __m512d;
using Mask = __mmask16;

#define SAME(name) \
    template <class... T> INLINE auto name(T... x) { return _mm512_##name(x...); }
SAME(setzero_ps) SAME(set1_ps) SAME(load_ps) SAME(loadu_ps) SAME(maskz_loadu_ps) SAME(store_ps) SAME(storeu_ps)
SAME(mask_storeu_ps) SAME(add_ps) SAME(sub_ps) SAME(mul_ps) SAME(max_ps) SAME(fmadd_ps) SAME(fmsub_ps) SAME(fnmadd_ps)
SAME(abs_ps) SAME(mask_mov_ps) SAME(cvtepi32_ps) SAME(cvtps_epi32) SAME(reduce_max_ps) SAME(reduce_add_ps)
SAME(scalef_ps) SAME(stream_ps) SAME(set1_epi32) SAME(set1_epi16) SAME(add_epi32) SAME(add_epi16) SAME(madd_epi16)
SAME(maddubs_epi16) SAME(mask_set1_epi32) SAME(reduce_add_epi32) SAME(cvtepi32_epi8) SAME(setzero_pd) SAME(sub_pd)
SAME(fmadd_pd) SAME(reduce_add_pd)
#undef SAME

INLINE F16 round_ps(F16 x) { return _mm512_roundscale_ps(x, 8); }
template <int C> INLINE Mask cmp_ps_mask(F16 x, F16 y) { return _mm512_cmp_ps_mask(x, y, C); }
INLINE I16 setzero_si() { return _mm512_setzero_si512(); }
INLINE I16 load_si(const void* p) { return _mm512_load_si512(p); }
INLINE void store_si(void* p, I16 x) { _mm512_store_si512(p, x); }
INLINE D8 low_pd(F16 x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x)); }
INLINE D8 high_pd(F16 x) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)); }
INLINE D8 maskz_loadu_pd(Mask m, const float* p) {  // 8 floats
    return _mm512_cvtps_pd(_mm256_maskz_loadu_ps(static_cast<__mmask8>(m), p));
}

#endif

END_VECTOR_CODE

}  // namespace selfcluster
