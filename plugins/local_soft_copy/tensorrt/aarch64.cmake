# Cross compilation for Jetson and ARM servers: cmake -DCMAKE_TOOLCHAIN_FILE=aarch64.cmake, with Debian's
# g++-aarch64-linux-gnu. nvcc compiles the kernels on this machine.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_ASM_COMPILER aarch64-linux-gnu-g++)
