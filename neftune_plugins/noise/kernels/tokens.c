/* What docs/noise.md defines of tokens, row by row and in one pass over each: `before`, `layout` and `keys` of form.py.
 *
 * Arrays are (rows, width). Compile with -ffp-contract=off (a fused multiply-add has another last bit).
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* The last real token before each token; 0 before the first. */
int neftune_before(const uint8_t *real, int64_t *column, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row++, real += width, column += width) {
        int64_t last = 0;
        for (int64_t i = 0; i < width; i++) {
            column[i] = last;
            if (real[i]) last = i;
        }
    }
    return 0;
}

typedef struct {
    const int64_t *ids;
    const uint8_t *untrained; /* or null */
    int64_t pad;
    int tails, zeros, ends; /* as in ByIds */
} ByIds;

static int is_filler(const ByIds *by, int64_t at) {
    if (by->ids[at] == by->pad) return 1;
    return by->zeros && by->ids[at] == 0 && (!by->untrained || by->untrained[at]);
}

/* The column from which a row is padding. `at`: of the row's first token. */
static int64_t cut_of(const ByIds *by, const uint8_t *real, const uint8_t *start, int64_t at, int64_t width) {
    int64_t tail = width;
    while (tail > 0 && real[at + tail - 1] && is_filler(by, at + tail - 1)) tail--;
    if (!by->tails || tail == width) return width;
    int64_t cut = width;
    if (start) { /* examples that have nothing else; a row that has nothing else is one */
        int is_all = 1;
        for (int64_t i = 0; i < tail && is_all; i++) is_all = !real[at + i];
        for (cut = tail; cut < width && !is_all && !start[at + cut];) cut++;
    }
    if (by->tails > 1 && cut == width) cut = tail + (by->ends && by->ids[at + tail] == by->pad);
    return cut;
}

/* start, ids: or null. */
int neftune_layout(const uint8_t *real, const uint8_t *start, const int64_t *ids, const uint8_t *untrained, int64_t pad,
                   int tails, int zeros, int ends, int64_t rows, int64_t width, uint8_t *is_real, int64_t *example,
                   int64_t *position, int64_t *length) {
    ByIds by = {ids, untrained, pad, tails, zeros, ends};
    for (int64_t row = 0; row < rows; row++) {
        int64_t at = row * width, cut = ids ? cut_of(&by, real, start, at, width) : width;
        int64_t number = 0, count = 0, words = 0, begin = 0;
        for (int64_t i = 0; i <= width; i++) {
            int is_token = i < width && i < cut && real[at + i];
            int begins = is_token && (!number || (start && start[at + i]));
            if (begins || i == width) { /* the example before ends */
                for (int64_t j = begin; j < i; j++) length[at + j] = count;
                if (ids && !words) memset(is_real + at + begin, 0, i - begin);
            }
            if (i == width) break;
            if (begins) number++, count = words = 0, begin = i;
            is_real[at + i] = is_token;
            example[at + i] = number;
            position[at + i] = count;
            count += is_token;
            words += is_token && ids && ids[at + i] != pad;
        }
    }
    return 0;
}

static uint64_t mix(uint64_t value) {
    value += 0x9E3779B97F4A7C15;
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
    return value ^ (value >> 31);
}

/* sums: of sequences, tokens and squared scales times `energy`, or null.
 * Returns 1 where the number of an example is not in [0, width], 2 without memory. */
int neftune_keys(const int64_t *ids, const uint8_t *real, const int64_t *example, const int64_t *position,
                 const int64_t *length, const int64_t *step, int64_t key, const float *alpha, int64_t dim, int padded,
                 double energy, int64_t rows, int64_t width, int64_t *keys, float *scales, float *sums) {
    uint64_t run = mix((uint64_t)*step ^ (uint64_t)key), *totals = malloc((width + 1) * sizeof *totals);
    double sequences = 0, tokens = 0, squares = 0;
    int failed = totals ? 0 : 2;
    for (int64_t row = 0; row < rows && !failed; row++) {
        memset(totals, 0, (width + 1) * sizeof *totals);
        for (int64_t i = 0, at = row * width; i < width; i++, at++) {
            if (example[at] < 0 || example[at] > width) failed = 1;
            if (failed) break;
            if (real[at]) totals[example[at]] += mix(mix((uint64_t)ids[at]) ^ (uint64_t)position[at]);
        }
        for (int64_t i = 0, at = row * width; i < width && !failed; i++, at++) {
            keys[at] = (int64_t)mix(mix(totals[example[at]] ^ run) ^ (uint64_t)position[at]);
            int64_t count = padded ? width : length[at];
            float scale = 1.0f / sqrtf((float)((count < 1 ? 1 : count) * dim)) * *alpha;
            scales[at] = real[at] ? scale : 0.0f;
            if (!real[at]) continue;
            sequences += position[at] == 0;
            tokens += 1;
            squares += (double)scale * scale;
        }
    }
    free(totals);
    if (sums) sums[0] = sequences, sums[1] = tokens, sums[2] = squares * energy;
    return failed;
}
