/* The draw of docs/noise.md for one contiguous block of rows, added in place in one pass.
 *
 * DRAW(bits) gives a float from an int32_t of which the upper 24 bits are random; it comes from the noise type.
 * Compile with -ffp-contract=off (a fused multiply-add has another last bit) and -fwrapv (products wrap around).
 */
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#ifdef __F16C__
#include <immintrin.h>
#endif

typedef struct {
    void *x;                /* (rows, dim) */
    const int64_t *keys;    /* (rows) */
    const float *scales;    /* (rows); 0 on padding */
    const int32_t *codes;   /* (dim) */
    int64_t first, last, dim;
    float unit; /* of the type's draw */
    double noise_energy, scale_energy, x_energy;
    int measures;
} Work;

static inline float from_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FC0; /* not a number, as torch writes it */
    return (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

static inline float draw_one(int32_t code, int32_t low, int32_t high, float scale) {
    int32_t bits = code ^ low;
    bits *= 0x21F0AAAD;
    bits ^= bits >> 15;
    bits ^= high;
    bits *= (int32_t)0xD35A2D97;
    return DRAW(bits) * scale;
}

enum { BLOCK = 256, LANES = 16 };

static inline void load_float32(float *values, const float *x, int64_t count) {
    for (int64_t i = 0; i < count; i++) values[i] = x[i];
}

static inline void store_float32(float *x, const float *values, int64_t count) {
    for (int64_t i = 0; i < count; i++) x[i] = values[i];
}

static inline void load_bfloat16(float *values, const uint16_t *x, int64_t count) {
    for (int64_t i = 0; i < count; i++) values[i] = from_bf16(x[i]);
}

static inline void store_bfloat16(uint16_t *x, const float *values, int64_t count) {
    for (int64_t i = 0; i < count; i++) x[i] = to_bf16(values[i]);
}

#ifdef __FLT16_MANT_DIG__
static inline void load_float16(float *values, const _Float16 *x, int64_t count) {
    int64_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(values + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i))));
#endif
    for (; i < count; i++) values[i] = (float)x[i];
}

static inline void store_float16(_Float16 *x, const float *values, int64_t count) {
    int64_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= count; i += 8)
        _mm_storeu_si128((__m128i *)(x + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(values + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < count; i++) x[i] = (_Float16)values[i];
}
#endif

/* Sums in lanes, which the compiler keeps in a vector without reordering any of them. */
static inline double sum_of_squares(const float *values, int64_t count) {
    float sums[LANES] = {0};
    double sum = 0;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int lane = 0; lane < LANES; lane++) sums[lane] += values[i + lane] * values[i + lane];
    for (; i < count; i++) sum += values[i] * values[i];
    for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
    return sum;
}

/* One function a type of x, block by block in the cache of the first level. */
#define ROWS(NAME, TYPE)                                                                                               \
    static void *rows_##NAME(void *argument) {                                                                         \
        Work *work = argument;                                                                                         \
        float values[BLOCK], noise[BLOCK];                                                                             \
        for (int64_t row = work->first; row < work->last; row++) {                                                     \
            float scale = work->scales[row];                                                                           \
            if (scale == 0.0f) continue;                                                                               \
            work->scale_energy += (double)scale * scale;                                                               \
            scale *= work->unit;                                                                                       \
            int32_t low = (int32_t)work->keys[row], high = (int32_t)(work->keys[row] >> 32);                           \
            for (int64_t first = 0; first < work->dim; first += BLOCK) {                                               \
                int64_t count = work->dim - first < BLOCK ? work->dim - first : BLOCK;                                 \
                TYPE *x = (TYPE *)work->x + row * work->dim + first;                                                   \
                load_##NAME(values, x, count);                                                                         \
                for (int64_t i = 0; i < count; i++)                                                                    \
                    noise[i] = draw_one(work->codes[first + i], low, high, scale);                                     \
                if (work->measures) {                                                                                  \
                    work->noise_energy += sum_of_squares(noise, count);                                                \
                    work->x_energy += sum_of_squares(values, count);                                                   \
                }                                                                                                      \
                for (int64_t i = 0; i < count; i++) values[i] += noise[i];                                             \
                store_##NAME(x, values, count);                                                                        \
            }                                                                                                          \
        }                                                                                                              \
        return 0;                                                                                                      \
    }

ROWS(float32, float)
ROWS(bfloat16, uint16_t)
#ifdef __FLT16_MANT_DIG__
ROWS(float16, _Float16)
#endif

enum { MOST_THREADS = 64 };

/* dtype: 0 float32, 1 bfloat16, 2 float16. energy: sums of squares of the noise, of the scales times `expected`, and of
 * the noised x, or null.
 * Returns 0, or 1 where this build does not have the dtype. */
int neftune_add(void *x, const int64_t *keys, const float *scales, const int32_t *codes, float unit, int64_t rows,
                int64_t dim, int dtype, int threads, double expected, float *energy) {
    void *(*run)(void *) = dtype == 0 ? rows_float32 : dtype == 1 ? rows_bfloat16 : 0;
#ifdef __FLT16_MANT_DIG__
    if (dtype == 2) run = rows_float16;
#endif
    if (!run) return 1;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (threads > rows) threads = rows > 0 ? (int)rows : 1;
    Work works[MOST_THREADS];
    pthread_t started[MOST_THREADS];
    int is_started[MOST_THREADS] = {0};
    for (int i = 0; i < threads; i++) {
        works[i] = (Work){x,   keys, scales, codes, rows * i / threads, rows * (i + 1) / threads,
                          dim, unit, 0,      0,     0,                  energy != 0};
        if (i > 0) is_started[i] = pthread_create(&started[i], 0, run, &works[i]) == 0;
    }
    run(&works[0]);
    for (int i = 1; i < threads; i++) {
        if (is_started[i])
            pthread_join(started[i], 0);
        else
            run(&works[i]);
    }
    double sums[3] = {0};
    for (int i = 0; i < threads; i++) {
        sums[0] += works[i].noise_energy;
        sums[1] += works[i].scale_energy * expected;
        sums[2] += works[i].x_energy;
    }
    for (int i = 0; energy && i < 3; i++) energy[i] = (float)sums[i];
    return 0;
}
