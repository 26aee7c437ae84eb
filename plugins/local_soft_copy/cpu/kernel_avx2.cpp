// Eight lanes, 16 registers: twelve sums, two queries, one key. Compiled with -mavx2 -mfma -mf16c.
#define KERNEL_NAME avx2_kernel
#define KERNEL_TEXT "avx2"
#define LANES 8
#define PAIR_OFFSETS 6
#define SINGLE_OFFSETS 12
#include "kernel_body.h"
