// Four lanes: SSE2, which every x86-64 processor has, NEON, which every AArch64 processor has, or plain code.
#define KERNEL_NAME portable_kernel
#define KERNEL_TEXT "portable"
#define LANES 4
#if defined(__aarch64__)
#define REGISTERS 32
#else
#define REGISTERS 16
#endif
#include "kernel_body.h"
