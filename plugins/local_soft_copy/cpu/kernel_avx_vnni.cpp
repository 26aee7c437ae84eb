// kernel_avx2.cpp with one instruction for products of packed features; also compiled with -mavxvnni.
#define KERNEL_NAME avx_vnni_kernel
#define KERNEL_TEXT "avx-vnni"
#define LANES 8
#define REGISTERS 16
#include "kernel_body.h"
