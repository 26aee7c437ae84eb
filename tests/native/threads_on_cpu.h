// Interface between a kernel and the threads that run it; short, because every kernel is compiled with it.
#pragma once
#include <cstddef>

namespace on_cpu {

struct Index {
    unsigned x, y, z;
};

enum class Wait { none, warp, block, ended };

// Thread of a block, for the kernel.
struct Thread {
    Index index{};
    long collective = 0;  // warp-wide instructions so far
};

extern Thread* current;
extern Index block_index, grid;

[[noreturn]] void fail(const char* what);
void pause(Wait wait, int line);
unsigned exchange(unsigned bits, int mask, int line);

inline float exchange(float value, int mask, int line) {
    unsigned bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    bits = exchange(bits, mask, line);
    __builtin_memcpy(&value, &bits, sizeof bits);
    return value;
}

// Constants of the compiled kernel, and the work of one thread.
extern const std::size_t stored_bytes, classes;
void kernel(const void* query, const void* keys, const void* values, const void* references, int height,
            int width, int num_frames, int num_windows, void* copied);

}  // namespace on_cpu
