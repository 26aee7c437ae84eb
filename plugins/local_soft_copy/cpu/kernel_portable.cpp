// Four lanes: SSE2 on x86-64 and NEON on AArch64, which every such processor has; plain code elsewhere.
#define KERNEL_NAME portable_kernel
#define KERNEL_TEXT "portable"
#define LANES 4
#if defined(__aarch64__)
#define REGISTERS 32
#else
#define REGISTERS 16
#endif
#include "kernel_body.h"
