/* Text cut into words, each with its number: the inner loop of `word_cache.py`.
 *
 * A word is what Python's expression \s*\S+|\s+ finds: the space before it belongs to it. The table
 * keeps its own copy of each word; numbers count up from 0 in the order of first appearance.
 * Open addressing with linear probing, at most half full; words are compared whole.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    uint64_t hash;
    int64_t start;   /* of the word in `bytes` */
    int32_t length;
    int32_t number;  /* -1: empty */
} Slot;

typedef struct {
    Slot *slots;
    uint64_t mask;   /* the number of slots, a power of two, less one */
    int64_t words;
    uint8_t *bytes;
    int64_t used, room;
} Table;

enum { SLOTS_FIRST = 1 << 16, BYTES_FIRST = 1 << 20 };

static Slot *empty_slots(uint64_t count) {
    Slot *slots = malloc(count * sizeof(Slot));
    if (slots)
        for (uint64_t i = 0; i < count; i++) slots[i].number = -1;
    return slots;
}

void words_free(Table *table) {
    if (table) {
        free(table->slots);
        free(table->bytes);
        free(table);
    }
}

Table *words_new(void) {
    Table *table = calloc(1, sizeof(Table));
    if (!table) return NULL;
    table->slots = empty_slots(SLOTS_FIRST);
    table->bytes = malloc(BYTES_FIRST);
    table->mask = SLOTS_FIRST - 1;
    table->room = BYTES_FIRST;
    if (!table->slots || !table->bytes) {
        words_free(table);
        return NULL;
    }
    return table;
}

static int grow(Table *table) {
    uint64_t mask = 2 * table->mask + 1;
    Slot *slots = empty_slots(mask + 1);
    if (!slots) return 0;
    for (uint64_t i = 0; i <= table->mask; i++) {
        if (table->slots[i].number < 0) continue;
        uint64_t place = table->slots[i].hash & mask;
        while (slots[place].number >= 0) place = (place + 1) & mask;
        slots[place] = table->slots[i];
    }
    free(table->slots);
    table->slots = slots;
    table->mask = mask;
    return 1;
}

static inline uint64_t hash_of(const uint8_t *word, int64_t length) {
    uint64_t hash = 0x9E3779B97F4A7C15u ^ (uint64_t)length, part;
    for (; length >= 8; word += 8, length -= 8) {
        memcpy(&part, word, 8);
        hash = (hash ^ part) * 0xD6E8FEB86659FD93u;
        hash ^= hash >> 32;
    }
    part = 0;
    memcpy(&part, word, (size_t)length);
    hash = (hash ^ part) * 0xD6E8FEB86659FD93u;
    return hash ^ (hash >> 29);
}

/* The bytes of the space that `text` begins with, 0 where it begins with none: str.isspace(). */
static inline int space_at(const uint8_t *text, int64_t left) {
    uint8_t a = text[0];
    if (a < 0x80) return a == ' ' || (a >= 9 && a <= 13) || (a >= 0x1C && a <= 0x1F);
    if (a == 0xC2 && left >= 2) return text[1] == 0x85 || text[1] == 0xA0 ? 2 : 0;
    if (a < 0xE1 || a > 0xE3 || left < 3) return 0;
    uint32_t c = (uint32_t)(a & 15) << 12 | (uint32_t)(text[1] & 63) << 6 | (text[2] & 63);
    int is = c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
             c == 0x202F || c == 0x205F || c == 0x3000;
    return is ? 3 : 0;
}

/* The number of a word; a new one is entered. -1: no memory. */
static int64_t number_of(Table *table, const uint8_t *word, int64_t length) {
    uint64_t hash = hash_of(word, length), place = hash & table->mask;
    for (Slot *slot; (slot = &table->slots[place])->number >= 0; place = (place + 1) & table->mask)
        if (slot->hash == hash && slot->length == length &&
            !memcmp(table->bytes + slot->start, word, (size_t)length))
            return slot->number;
    if (table->used + length > table->room) {
        int64_t room = 2 * table->room + length;
        uint8_t *bytes = realloc(table->bytes, (size_t)room);
        if (!bytes) return -1;
        table->bytes = bytes;
        table->room = room;
    }
    memcpy(table->bytes + table->used, word, (size_t)length);
    table->slots[place] = (Slot){hash, table->used, (int32_t)length, (int32_t)table->words};
    table->used += length;
    int64_t number = table->words++;
    if (2 * (uint64_t)table->words > table->mask && !grow(table)) return -1;
    return number;
}

/* Write the numbers of the words of a UTF-8 text, and where those begin and end that are new.
 *
 * `numbers` and `ends` have space for `length` and 2 * `length` values. Returns the number of words
 * and sets `*new_words`; -1: there is no memory.
 */
int64_t words_number(Table *table, const uint8_t *text, int64_t length, int32_t *numbers,
                     int32_t *ends, int64_t *new_words) {
    int64_t count = 0, at = 0, fresh = 0;
    while (at < length) {
        int64_t start = at;
        for (int step; at < length && (step = space_at(text + at, length - at)); at += step) {}
        while (at < length && !space_at(text + at, length - at)) at++;
        int64_t before = table->words, number = number_of(table, text + start, at - start);
        if (number < 0) return -1;
        if (table->words > before) {
            ends[2 * fresh] = (int32_t)start;
            ends[2 * fresh + 1] = (int32_t)at;
            fresh++;
        }
        numbers[count++] = (int32_t)number;
    }
    *new_words = fresh;
    return count;
}
