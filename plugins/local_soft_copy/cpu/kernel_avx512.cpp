// Sixteen lanes, 32 registers. Compiled with -mavx512f -mavx512bw -mavx2 -mfma -mf16c.
#define KERNEL_NAME avx512_kernel
#define KERNEL_TEXT "avx512"
#define LANES 16
#define REGISTERS 32
#include "kernel_body.h"
