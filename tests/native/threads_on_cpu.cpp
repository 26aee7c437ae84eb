// Run a kernel on the CPU, one block after another and one fibre for each thread:
//
//     program ORDER BATCH HEIGHT WIDTH FRAMES GRID_X GRID_Y GRID_Z THREADS FOLDER
//
// FOLDER holds query, keys and values in the kernel's dtype, and references, four int32 per row. The result goes to
// FOLDER/copied.
//
// A warp runs as far as it can before the next one starts; the caller chooses the order of warps and lanes. So a
// missing barrier leads to the wrong order: a reader runs before its writer in one order, a writer before the last
// reader in another. Shared memory is NaN before every block. Threads that wait at different barriers, warps that split before a
// collective instruction and misaligned fragments end the program with a message.
#include "threads_on_cpu.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

extern "C" char __start_shared_memory[], __stop_shared_memory[];

namespace on_cpu {

Thread* current = nullptr;
Index block_index, grid;

void fail(const char* what) {
    std::fprintf(stderr, "cuda on cpu: %s\n", what);
    std::exit(3);
}

namespace {

constexpr std::size_t STACK = 128 * 1024;
constexpr int LANES = 32;

struct Fibre : Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    Wait wait = Wait::none;
    int line = 0;      // of the barrier
    unsigned bits[2];  // for shuffles, one of two in turn
    int turn = 0;
};

std::vector<Fibre> fibres;
ucontext_t scheduler;
std::function<void()> body;
const void* scheduler_stack = nullptr;
std::size_t scheduler_size = 0;

Fibre& own() { return *static_cast<Fibre*>(current); }

void switch_to(ucontext_t& from, ucontext_t& to, const void* stack, std::size_t size) {
#ifdef __SANITIZE_ADDRESS__
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack, size);
    swapcontext(&from, &to);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    (void)stack, (void)size;
    swapcontext(&from, &to);
#endif
}

void enter() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
    body();
    pause(Wait::ended, 0);
}

void resume(Fibre& fibre) {
    current = &fibre;
    fibre.wait = Wait::none;
    switch_to(scheduler, fibre.context, fibre.stack.get(), STACK);
}

// Return true if all threads first .. last wait at the same line.
bool together(std::size_t first, std::size_t last, Wait wait) {
    for (std::size_t i = first; i < last; ++i)
        if (fibres[i].wait != wait || fibres[i].line != fibres[first].line) return false;
    for (std::size_t i = first; i < last && wait == Wait::warp; ++i)
        if (fibres[i].collective != fibres[first].collective) fail("a warp split before a collective instruction");
    return true;
}

// order: 0 forwards, 1 backwards, otherwise the seed of a new shuffle each time.
class Order {
   public:
    explicit Order(unsigned order) : order(order), generator(order) {}

    std::vector<int> of(int count) {
        std::vector<int> places(count);
        for (int i = 0; i < count; ++i) places[i] = order == 1 ? count - 1 - i : i;
        if (order > 1) std::shuffle(places.begin(), places.end(), generator);
        return places;
    }

   private:
    unsigned order;
    std::mt19937 generator;
};

__attribute__((no_sanitize_address)) void poison_shared_memory() {
    for (volatile char* at = __start_shared_memory; at < __stop_shared_memory; ++at) *at = char(0xff);
}

void run_block(int threads, Order& order) {
    poison_shared_memory();
    for (int i = 0; i < threads; ++i) {
        Fibre& fibre = fibres[i];
        fibre.index = {unsigned(i), 0, 0};
        fibre.wait = Wait::none;
        fibre.collective = fibre.turn = 0;
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.get();
        fibre.context.uc_stack.ss_size = STACK;
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, enter, 0);
    }
    const int warps = threads / LANES;
    for (bool first = true;; first = false) {
        if (!first) {
            if (together(0, threads, Wait::ended)) return;
            if (!together(0, threads, Wait::block)) fail("threads wait at different barriers");
        }
        for (int warp : order.of(warps)) {
            const std::size_t begin = std::size_t(warp) * LANES;
            do {
                for (int lane : order.of(LANES)) resume(fibres[begin + lane]);
            } while (together(begin, begin + LANES, Wait::warp));
        }
    }
}

// Run all blocks of the grid.
void run(Index blocks, int threads, unsigned order, std::function<void()> work) {
    body = std::move(work);
    fibres = std::vector<Fibre>(threads);
    Order places(order);
    grid = blocks;
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                block_index = {x, y, z};
                run_block(threads, places);
            }
}

// Read a file into a buffer of exactly its size, for the sanitizers.
std::vector<char> read(const std::string& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) fail(path.c_str());
    std::vector<char> content(std::size_t(file.tellg()));
    file.seekg(0);
    file.read(content.data(), std::streamsize(content.size()));
    return content;
}

}  // namespace

void pause(Wait wait, int line) {
    own().wait = wait;
    own().line = line;
    switch_to(own().context, scheduler, scheduler_stack, scheduler_size);
}

// Store the lane's value, then read the value of its partner. Two places alternate, so no value is overwritten before
// it is read.
unsigned exchange(unsigned value, int mask, int line) {
    const int turn = own().turn ^= 1;
    own().bits[turn] = value;
    ++current->collective;
    pause(Wait::warp, line);
    const unsigned thread = current->index.x;
    return fibres[thread / LANES * LANES + ((thread % LANES) ^ mask)].bits[turn];
}

}  // namespace on_cpu

int main(int count, char** words) {
    using namespace on_cpu;
    if (count != 11) fail("expected ten arguments");
    int numbers[9];
    for (int i = 0; i < 9; ++i) numbers[i] = std::atoi(words[i + 1]);
    const auto [order, batch, height, width, num_frames, x, y, z, threads] = numbers;
    const std::string folder = words[10];
    const auto query = read(folder + "/query"), keys = read(folder + "/keys"), values = read(folder + "/values");
    const auto references = read(folder + "/references");
    const int num_windows = int(references.size() / (4 * sizeof(int)));
    std::vector<char> copied(std::size_t(batch) * classes * height * width * stored_bytes);
    std::memset(copied.data(), 0xff, copied.size());  // NaN where nothing is written
    run({unsigned(x), unsigned(y), unsigned(z)}, threads, unsigned(order),
        [&, height = height, width = width, num_frames = num_frames] {
            kernel(query.data(), keys.data(), values.data(), references.data(), height, width, num_frames, num_windows,
                   copied.data());
        });
    std::ofstream(folder + "/copied", std::ios::binary).write(copied.data(), std::streamsize(copied.size()));
}
