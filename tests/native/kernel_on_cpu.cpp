// Makes a planned kernel, the file KERNEL, into what threads_on_cpu.cpp runs.
#include KERNEL

namespace on_cpu {

const std::size_t stored_bytes = sizeof(Stored), classes = CLASSES;

void kernel(const void* query, const void* keys, const void* values, const void* names, int height, int width,
            int pictures, int references, void* copied) {
    corrflow_local_soft_copy(static_cast<const Stored*>(query), static_cast<const Stored*>(keys),
                             static_cast<const Stored*>(values), static_cast<const SearchWindow*>(names), height, width,
                             pictures, references, static_cast<Stored*>(copied));
}

}  // namespace on_cpu
