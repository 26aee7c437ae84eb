// Eight lanes, 16 registers. Compiled with -mavx2 -mfma -mf16c.
#define KERNEL_NAME avx2_kernel
#define KERNEL_TEXT "avx2"
#define LANES 8
#define REGISTERS 16
#include "kernel_body.h"
