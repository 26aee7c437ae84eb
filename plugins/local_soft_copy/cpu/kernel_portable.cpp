// Four lanes: SSE2 on x86-64 and NEON on AArch64, which every such processor has; plain code elsewhere.
#define KERNEL_NAME portable_kernel
#define KERNEL_TEXT "portable"
#define LANES 4
#if defined(__aarch64__)  // 32 registers
#define PAIR_OFFSETS 13
#define SINGLE_OFFSETS 13
#else
#define PAIR_OFFSETS 6
#define SINGLE_OFFSETS 12
#endif
#include "kernel_body.h"
