// Runs a planned kernel on the CPU: run_cuda ORDER BATCH HEIGHT WIDTH REFERENCES GRID_X GRID_Y GRID_Z THREADS FOLDER
// FOLDER holds query, keys and values in the kernel's storage; the result goes to FOLDER/copied.
#include <fstream>
#include <string>

#include KERNEL

namespace {

std::vector<Stored> read(const std::string& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) on_cpu::fail(path.c_str());
    std::vector<Stored> content(std::size_t(file.tellg()) / sizeof(Stored));
    file.seekg(0);
    file.read(reinterpret_cast<char*>(content.data()), std::streamsize(content.size() * sizeof(Stored)));
    return content;
}

}  // namespace

int main(int count, char** words) {
    if (count != 11) on_cpu::fail("expected ten arguments");
    int numbers[9];
    for (int i = 0; i < 9; ++i) numbers[i] = std::atoi(words[i + 1]);
    const auto [order, batch, height, width, references, x, y, z, threads] = numbers;
    const std::string folder = words[10];
    const auto query = read(folder + "/query"), keys = read(folder + "/keys"), values = read(folder + "/values");
    std::vector<Stored> copied(std::size_t(batch) * CLASSES * height * width);
    std::memset(copied.data(), 0xff, copied.size() * sizeof(Stored));  // NaN wherever nothing is written
    on_cpu::run({unsigned(x), unsigned(y), unsigned(z)}, threads, unsigned(order),
                [&, height = height, width = width, references = references] {
                    corrflow_local_soft_copy(query.data(), keys.data(), values.data(), height, width, references,
                                             copied.data());
                });
    std::ofstream(folder + "/copied", std::ios::binary)
        .write(reinterpret_cast<const char*>(copied.data()), std::streamsize(copied.size() * sizeof(Stored)));
}
