/* Inner loops of the codecs and the combination, for long vectors; `native.py` compiles and calls.
 *
 * Each function does what the NumPy code of the same name does, bit for bit: integers throughout
 * but for encoding, whose floats are multiplied and rounded in the same order. Nothing here
 * allocates, and every size comes from the caller, who has checked the bytes that are read.
 *
 * Names: K contributions, N blocks, C coordinates, a "row" is one contribution's values.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { BLOCK = 256, CHUNK = 4096, PLACES = 64, KMAX = 64, SKETCH = 16384 };
enum { LOUDNESS_BYTES = 6, PLACE_BYTES = PLACES * 12 / 8, CODE_BYTES = PLACES * 2 / 8 };

typedef unsigned __int128 wide;

/* What is computed of the rows, as `combine.Plan` says. */
typedef struct {
    int32_t rows;              /* after pairing */
    int32_t trim;
    int64_t divisor;
    const int32_t *buckets;    /* rows x 2: one, and another or -1; NULL: nobody is averaged */
    const int32_t *far;        /* rows x (rows + 1): who is not near, ended by -1; NULL: no mixing */
    const int32_t *network;    /* comparators x 2: low row, high row */
    int32_t comparators;
    const int32_t *weights;    /* NULL: all alike */
} Plan;

static void put_wide(wide total, uint64_t out[2]) {
    out[0] = (uint64_t)total;
    out[1] = (uint64_t)(total >> 64);
}

/* Exact for |sum| < 2^53: a quotient is at least 1/divisor away from the next integer. */
static inline int32_t floor_divide(double sum, double divisor) {
    return (int32_t)floor(sum / divisor);
}

static inline int32_t scale(int32_t value, int64_t factor) {
    return (int32_t)((value * factor) >> 16);
}

/* Pair, mix, trim or weigh, and average one block of columns; overwrites the rows. */
static void combine_block(int32_t (*row)[BLOCK], const Plan *plan, int32_t *out) {
    static _Thread_local int32_t mixed[KMAX][BLOCK];
    int32_t total[BLOCK];
    if (plan->buckets)
        for (int b = 0; b < plan->rows; b++) {
            const int32_t *first = row[plan->buckets[2 * b]];
            const int other = plan->buckets[2 * b + 1];
            for (int c = 0; c < BLOCK; c++)
                mixed[b][c] = other < 0 ? first[c] : (first[c] + row[other][c]) >> 1;
        }
    if (plan->buckets) memcpy(row, mixed, sizeof(int32_t) * BLOCK * plan->rows);
    if (plan->far) {
        memcpy(total, row[0], sizeof total);
        for (int k = 1; k < plan->rows; k++)
            for (int c = 0; c < BLOCK; c++) total[c] += row[k][c];
        for (int k = 0; k < plan->rows; k++) {
            const int32_t *far = plan->far + k * (plan->rows + 1);
            memcpy(mixed[k], total, sizeof total);
            for (; *far >= 0; far++)
                for (int c = 0; c < BLOCK; c++) mixed[k][c] -= row[*far][c];
        }
        row = mixed;
    }
    if (plan->weights) {
        int64_t sum[BLOCK] = {0};
        for (int k = 0; k < plan->rows; k++)
            for (int c = 0; c < BLOCK; c++) sum[c] += (int64_t)row[k][c] * plan->weights[k];
        for (int c = 0; c < BLOCK; c++)
            out[c] = floor_divide((double)sum[c], (double)plan->divisor);
        return;
    }
    for (int n = 0; n < plan->comparators; n++) {
        const int32_t *step = plan->network + 2 * n;
        int32_t *low = row[step[0]], *high = row[step[1]];
        for (int c = 0; c < BLOCK; c++) {
            int32_t a = low[c], b = high[c];
            low[c] = a < b ? a : b;
            high[c] = a < b ? b : a;
        }
    }
    int64_t sum[BLOCK] = {0};
    for (int k = plan->trim; k < plan->rows - plan->trim; k++)
        for (int c = 0; c < BLOCK; c++) sum[c] += row[k][c];
    for (int c = 0; c < BLOCK; c++) out[c] = floor_divide((double)sum[c], (double)plan->divisor);
}

static uint64_t block_squares(const int32_t *value, int count) { /* each below 2^25: fits */
    uint64_t sum = 0;
    for (int c = 0; c < count; c++) sum += (uint64_t)((int64_t)value[c] * value[c]);
    return sum;
}

/* --- dense codecs ---------------------------------------------------------------------------- */

static inline void dense_block(const uint8_t *packed, int bits, int32_t *out) {
    if (bits == 8) {
        for (int c = 0; c < BLOCK; c++) out[c] = (int8_t)packed[c];
        return;
    }
    for (int c = 0; c < BLOCK / 2; c++) {
        out[2 * c] = (int8_t)(packed[c] << 4) >> 4;
        out[2 * c + 1] = (int8_t)packed[c] >> 4;
    }
}

/* In lanes of floats, so that they are summed side by side. */
static inline double about_squares(const float *value, int count) {
    float lane[16] = {0}, sum = 0;
    int c = 0;
    for (; c + 16 <= count; c += 16)
        for (int l = 0; l < 16; l++) lane[l] += value[c + l] * value[c + l];
    for (int l = 0; l < 16; l++) sum += lane[l];
    for (; c < count; c++) sum += value[c] * value[c];
    return sum;
}

/* Encode whole blocks but for the last; returns 1 if a value is not finite. `squares` are the sums
 * of those of the update and of the residual, near enough to tell whether one is much longer. */
int dense_encode(const float *delta, const float *residual, float factor, float *left,
                 int64_t count, int bits, int exponent_max, uint8_t *exponents, uint8_t *packed,
                 double squares[2]) {
    const float unit = 16777216.0f, back = 1.0f / 16777216.0f;
    const float level_max = (float)((1 << (bits - 1)) - 1);
    for (int64_t start = 0; start < count; start += BLOCK, exponents++) {
        float value[BLOCK] = {0}, level[BLOCK];
        int here = count - start < BLOCK ? (int)(count - start) : BLOCK;
        squares[0] += about_squares(delta + start, here);
        squares[1] += about_squares(residual + start, here);
        for (int c = 0; c < here; c++) {
            float part = residual[start + c] * factor;
            part += delta[start + c];
            value[c] = part * unit;
        }
        int32_t loudest = 0;
        for (int c = 0; c < BLOCK; c++) {
            int32_t pattern;
            memcpy(&pattern, value + c, 4);
            pattern &= 0x7fffffff;
            loudest = pattern > loudest ? pattern : loudest;
        }
        if (loudest >= 0x7f800000) return 1;
        float loud;
        memcpy(&loud, &loudest, 4);
        int exponent;
        frexp((double)loud / ((double)level_max + 0.5), &exponent);
        exponent = exponent < 0 ? 0 : exponent > exponent_max ? exponent_max : exponent;
        float step = ldexpf(1.0f, exponent), inverse = 1.0f / step;
        for (int c = 0; c < BLOCK; c++) {
            float q = rintf(value[c] * inverse);
            q = q < -level_max ? -level_max : q;
            level[c] = q > level_max ? level_max : q;
        }
        for (int c = 0; c < here; c++)
            left[start + c] = (value[c] - level[c] * step) * back;
        *exponents = (uint8_t)exponent;
        if (bits == 8) {
            for (int c = 0; c < BLOCK; c++) packed[c] = (uint8_t)(int8_t)level[c];
            packed += BLOCK;
        } else {
            for (int c = 0; c < BLOCK / 2; c++)
                packed[c] = (uint8_t)(((int)level[2 * c] & 15) | (((int)level[2 * c + 1] & 15) << 4));
            packed += BLOCK / 2;
        }
    }
    return 0;
}

/* Return the faults of blocks, one bit for each kind in the order of `Dense.fault`; of the last
 * block `used` values count. */
int dense_faults(const uint8_t *exponents, const uint8_t *packed, int bits, int exponent_max,
                 int64_t blocks, int used) {
    const int lowest = -(1 << (bits - 1)), quiet = 1 << (bits - 2);
    int faults = 0;
    for (int64_t n = 0; n < blocks; n++) {
        int8_t level[BLOCK], low = 0, high = 0;
        const uint8_t *from = packed + n * (BLOCK * bits / 8);
        if (bits == 8) memcpy(level, from, BLOCK);
        else
            for (int c = 0; c < BLOCK / 2; c++) {
                level[2 * c] = (int8_t)((int8_t)(from[c] << 4) >> 4);
                level[2 * c + 1] = (int8_t)((int8_t)from[c] >> 4);
            }
        for (int c = 0; c < BLOCK; c++) low = level[c] < low ? level[c] : low;
        for (int c = 0; c < BLOCK; c++) high = level[c] > high ? level[c] : high;
        faults |= exponents[n] > exponent_max;
        faults |= (low <= lowest) << 1;
        faults |= (low > -quiet && high < quiet && exponents[n] > 0) << 2;
        if (n == blocks - 1)
            for (int c = used; c < BLOCK; c++) faults |= (level[c] != 0) << 3;
    }
    return faults;
}

void dense_decode(const uint8_t *exponents, const uint8_t *packed, int bits, int64_t blocks,
                  int32_t *out) {
    for (int64_t n = 0; n < blocks; n++, out += BLOCK) {
        int32_t step = 1 << exponents[n];
        dense_block(packed + n * (BLOCK * bits / 8), bits, out);
        for (int c = 0; c < BLOCK; c++) out[c] *= step;
    }
}

void dense_squares(const uint8_t *exponents, const uint8_t *packed, int bits, int64_t blocks,
                   uint64_t out[2]) {
    wide total = 0;
    int32_t level[BLOCK];
    for (int64_t n = 0; n < blocks; n++) {
        dense_block(packed + n * (BLOCK * bits / 8), bits, level);
        int32_t sum = 0;
        for (int c = 0; c < BLOCK; c++) sum += level[c] * level[c];
        total += (wide)sum << (2 * exponents[n]);
    }
    put_wide(total, out);
}

/* Add `count` signed coordinates, from one that begins a sketch chunk, to a total each. */
void dense_sketch(int K, const uint8_t *const *exponents, const uint8_t *const *packed, int bits,
                  int64_t count, const int64_t *rotations, const uint8_t *signs,
                  int64_t *const *totals) {
    static _Thread_local int32_t sign[SKETCH];
    int32_t level[BLOCK];
    for (int64_t start = 0; start < count; start += SKETCH) {
        int here = count - start < SKETCH ? (int)(count - start) : SKETCH;
        int rotation = (int)rotations[start / SKETCH];
        for (int c = 0; c < here; c++)
            sign[c] = -(int32_t)(signs[(start + c) >> 3] >> (7 - (c & 7)) & 1);
        for (int k = 0; k < K; k++)
            for (int first = 0; first < here; first += BLOCK) {
                int64_t n = (start + first) / BLOCK;
                int many = here - first < BLOCK ? here - first : BLOCK;
                int bucket = (first + rotation) % SKETCH, shift = exponents[k][n];
                dense_block(packed[k] + n * (BLOCK * bits / 8), bits, level);
                for (int c = 0; c < BLOCK; c++) {
                    int32_t s = first + c < SKETCH ? sign[first + c] : 0;
                    level[c] = ((level[c] * (1 << shift)) ^ s) - s;
                }
                int straight = SKETCH - bucket < many ? SKETCH - bucket : many;
                for (int c = 0; c < straight; c++) totals[k][bucket + c] += level[c];
                for (int c = straight; c < many; c++) totals[k][c - straight] += level[c];
            }
    }
}

void dense_combine(int K, const uint8_t *const *exponents, const uint8_t *const *packed, int bits,
                   int64_t count, const int64_t *factors, const Plan *plan, int32_t *out,
                   uint64_t squares[2]) {
    static _Thread_local int32_t row[KMAX][BLOCK];
    wide total = 0;
    for (int64_t start = 0; start < count; start += BLOCK) {
        int64_t n = start / BLOCK;
        int here = count - start < BLOCK ? (int)(count - start) : BLOCK;
        int32_t result[BLOCK];
        for (int k = 0; k < K; k++) {
            int32_t step = 1 << exponents[k][n];
            dense_block(packed[k] + n * (BLOCK * bits / 8), bits, row[k]);
            if (factors[k] == 65536)
                for (int c = 0; c < BLOCK; c++) row[k][c] *= step;
            else
                for (int c = 0; c < BLOCK; c++) row[k][c] = scale(row[k][c] * step, factors[k]);
        }
        combine_block(row, plan, result);
        memcpy(out + start, result, sizeof(int32_t) * here);
        total += block_squares(result, here);
    }
    put_wide(total, squares);
}

/* --- the sparse codec -------------------------------------------------------------------------- */

/* Unpack one chunk; returns how many of its places count, which come first. */
static int sparse_chunk(const uint8_t *loudness, const uint8_t *packed, const uint8_t *codes,
                        int64_t within, int32_t *place, int32_t *value) {
    int32_t quiet = loudness[0] | loudness[1] << 8 | loudness[2] << 16;
    int32_t loud = loudness[3] | loudness[4] << 8 | loudness[5] << 16;
    int32_t meaning[4] = {quiet, loud, -quiet, -loud};
    int many = 0;
    for (int k = 0; k < PLACES; k += 2) {
        const uint8_t *three = packed + k / 2 * 3;
        place[k] = three[0] | (three[1] & 15) << 8;
        place[k + 1] = three[1] >> 4 | three[2] << 4;
    }
    for (int k = 0; k < PLACES; k++) {
        value[k] = meaning[codes[k >> 2] >> (2 * (k & 3)) & 3];
        many += place[k] < within;
    }
    return many; /* places ascend, so those beyond the end are the last */
}

void sparse_sketch(int K, const uint8_t *const *loudness, const uint8_t *const *places,
                   const uint8_t *const *codes, int64_t count, const int64_t *rotations,
                   const uint8_t *signs, int64_t *const *totals) {
    int32_t place[PLACES], value[PLACES];
    for (int64_t start = 0; start < count; start += CHUNK) {
        int64_t n = start / CHUNK, rotation = rotations[start / SKETCH];
        for (int k = 0; k < K; k++) {
            int many = sparse_chunk(loudness[k] + n * LOUDNESS_BYTES, places[k] + n * PLACE_BYTES,
                                    codes[k] + n * CODE_BYTES, count - start, place, value);
            for (int i = 0; i < many; i++) {
                int64_t p = start + place[i];
                int32_t s = -(int32_t)(signs[p >> 3] >> (7 - (p & 7)) & 1);
                totals[k][(p % SKETCH + rotation) % SKETCH] += (value[i] ^ s) - s;
            }
        }
    }
}

/* Combine over zeros in `out`: only coordinates that somebody sends are worked on. */
void sparse_combine(int K, const uint8_t *const *loudness, const uint8_t *const *places,
                    const uint8_t *const *codes, int64_t count, const int64_t *factors,
                    const Plan *plan, int32_t *out, uint64_t squares[2]) {
    static _Thread_local int32_t row[KMAX][BLOCK], all[KMAX][CHUNK];
    static _Thread_local int16_t column[CHUNK];
    int32_t sent[CHUNK], place[KMAX][PLACES], value[KMAX][PLACES], result[BLOCK], many[KMAX];
    wide total = 0;
    for (int64_t start = 0; start < count; start += CHUNK) {
        int64_t n = start / CHUNK;
        int used = 0;
        memset(column, 0xff, sizeof column);
        for (int k = 0; k < K; k++) {
            many[k] = sparse_chunk(loudness[k] + n * LOUDNESS_BYTES, places[k] + n * PLACE_BYTES,
                                   codes[k] + n * CODE_BYTES, count - start, place[k], value[k]);
            for (int i = 0; i < many[k]; i++)
                if (column[place[k][i]] < 0) {
                    column[place[k][i]] = (int16_t)used;
                    sent[used++] = place[k][i];
                }
        }
        int width = (used + BLOCK - 1) / BLOCK * BLOCK;
        for (int k = 0; k < K; k++) {
            memset(all[k], 0, sizeof(int32_t) * width);
            for (int i = 0; i < many[k]; i++)
                all[k][column[place[k][i]]] =
                    factors[k] == 65536 ? value[k][i] : scale(value[k][i], factors[k]);
        }
        for (int left = 0; left < used; left += BLOCK) {
            int here = used - left < BLOCK ? used - left : BLOCK;
            for (int k = 0; k < K; k++) memcpy(row[k], all[k] + left, sizeof row[k]);
            combine_block(row, plan, result);
            for (int c = 0; c < here; c++) out[start + sent[left + c]] = result[c];
            total += block_squares(result, here);
        }
    }
    put_wide(total, squares);
}
