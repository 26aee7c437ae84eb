// Wrap a planned kernel, the file KERNEL, for threads_on_cpu.cpp.
#include KERNEL

namespace on_cpu {

const std::size_t stored_bytes = sizeof(Stored), classes = CLASSES;

void kernel(const void* query, const void* keys, const void* values, const void* references, int height,
            int width, int num_frames, int num_windows, void* copied) {
    corrflow_local_soft_copy(static_cast<const Stored*>(query), static_cast<const Stored*>(keys),
                             static_cast<const Stored*>(values), static_cast<const SearchWindow*>(references), height,
                             width, num_frames, num_windows, static_cast<Stored*>(copied));
}

}  // namespace on_cpu
