// kernel_portable.cpp with one instruction for products of 8-bit features; compiled with -march=armv8.2-a+dotprod.
#define KERNEL_NAME neon_dotprod_kernel
#define KERNEL_TEXT "neon-dotprod"
#define LANES 4
#define REGISTERS 32
#include "kernel_body.h"
