// Sixteen lanes, 32 registers: 26 sums, two queries, one key. Compiled with -mavx512f -mavx2 -mfma -mf16c.
#define KERNEL_NAME avx512_kernel
#define KERNEL_TEXT "avx512"
#define LANES 16
#define PAIR_OFFSETS 13
#define SINGLE_OFFSETS 26
#include "kernel_body.h"
