// The loops of rANS over all codes of a pack. Compiled by entropy.py, which checks the tables before and the end after.
//
// A class of rows has frequencies of the codes -127 to 127, out of 2^14. The states (lanes) take turns: code i belongs to
// state i % lanes.

#include <cstdint>
#include <vector>

namespace {

constexpr int kCodes = 255;
constexpr int kLargest = 127;
constexpr int kBits = 14;
constexpr uint32_t kLowest = 1u << 16;

// Where each code of each class begins: the sum of the frequencies before it.
std::vector<uint16_t> starts(const uint16_t* frequency, int64_t tables) {
    std::vector<uint16_t> start(tables * kCodes);
    for (int64_t table = 0; table < tables; table++) {
        uint32_t sum = 0;
        for (int code = 0; code < kCodes; code++) {
            start[table * kCodes + code] = static_cast<uint16_t>(sum);
            sum += frequency[table * kCodes + code];
        }
    }
    return start;
}

}  // namespace

extern "C" {

// Writes all codes, and returns how many words were read, or -1 if there are too few of them. The states are changed.
int64_t sw_rans_decode(const uint16_t* words, int64_t count, uint32_t* states, int64_t lanes, const uint8_t* classes,
                       const int64_t* lengths, int64_t rows, const uint16_t* frequency, int64_t tables, int8_t* codes) {
    const std::vector<uint16_t> start = starts(frequency, tables);
    std::vector<uint8_t> found(tables << kBits);  // class and slot -> code + 127
    for (int64_t at = 0, filled = 0; at < tables * kCodes; at++)
        for (int more = 0; more < frequency[at]; more++) found[filled++] = static_cast<uint8_t>(at % kCodes);
    int64_t read = 0, lane = 0;
    for (int64_t row = 0; row < rows; row++) {
        const uint8_t* own_found = found.data() + (int64_t(classes[row]) << kBits);
        const uint16_t* own_frequency = frequency + classes[row] * kCodes;
        const uint16_t* own_start = start.data() + classes[row] * kCodes;
        for (int64_t left = lengths[row]; left > 0; left--) {
            const uint32_t slot = states[lane] & ((1u << kBits) - 1);
            const uint8_t code = own_found[slot];
            uint32_t state = own_frequency[code] * (states[lane] >> kBits) + slot - own_start[code];
            if (state < kLowest) {
                if (read == count) return -1;
                state = state << 16 | words[read++];
            }
            states[lane] = state;
            *codes++ = static_cast<int8_t>(code - kLargest);
            if (++lane == lanes) lane = 0;
        }
    }
    return read;
}

// Writes words at the end of the room for one word for each code, and returns how much of the room is left before them.
int64_t sw_rans_encode(const int8_t* codes, int64_t total, uint32_t* states, int64_t lanes, const uint8_t* classes,
                       const int64_t* lengths, int64_t rows, const uint16_t* frequency, int64_t tables,
                       uint16_t* words) {
    const std::vector<uint16_t> start = starts(frequency, tables);
    int64_t room = total, lane = total % lanes;
    codes += total;
    for (int64_t row = rows - 1; row >= 0; row--) {
        const uint16_t* own_frequency = frequency + classes[row] * kCodes;
        const uint16_t* own_start = start.data() + classes[row] * kCodes;
        for (int64_t left = lengths[row]; left > 0; left--) {
            if (lane == 0) lane = lanes;
            uint32_t state = states[--lane];
            const int code = *--codes + kLargest;
            const uint32_t own = own_frequency[code];
            if (state >= own << (32 - kBits)) {
                words[--room] = static_cast<uint16_t>(state);
                state >>= 16;
            }
            states[lane] = (state / own << kBits) + state % own + own_start[code];
        }
    }
    return room;
}
}
