// kernel_avx512.cpp with one instruction for products of packed features; also compiled with -mavx512vnni.
#define KERNEL_NAME avx512_vnni_kernel
#define KERNEL_TEXT "avx512-vnni"
#define LANES 16
#define REGISTERS 32
#include "kernel_body.h"
