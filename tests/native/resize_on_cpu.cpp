// Run cuda_resize.cu, the file KERNEL, on the CPU, one thread after another:
//
//     program HEIGHT WIDTH ROWS COLUMNS BLOCKS THREADS < frame > resized
//
// Its threads never wait for each other. Buffers have exactly the size of the frames, for the sanitizers.
#include KERNEL

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace on_cpu {

Thread* current = nullptr;
Index block_index{};

}  // namespace on_cpu

int main(int count, char** words) {
    if (count != 7) return 2;
    int numbers[6];
    for (int i = 0; i < 6; ++i) numbers[i] = std::atoi(words[i + 1]);
    const auto [height, width, rows, columns, blocks, threads] = numbers;
    std::vector<unsigned char> frame(std::size_t(height) * width * 3), resized(std::size_t(rows) * columns * 3);
    if (std::fread(frame.data(), 1, frame.size(), stdin) != frame.size()) return 2;
    on_cpu::Thread thread;
    on_cpu::current = &thread;
    for (unsigned block = 0; block < unsigned(blocks); ++block)
        for (unsigned index = 0; index < unsigned(threads); ++index) {
            on_cpu::block_index = {block, 0, 0};
            thread.index = {index, 0, 0};
            corrflow_resize(frame.data(), height, width, rows, columns, resized.data());
        }
    return std::fwrite(resized.data(), 1, resized.size(), stdout) == resized.size() ? 0 : 2;
}
