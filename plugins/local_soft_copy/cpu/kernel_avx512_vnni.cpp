// As kernel_avx512.cpp, with the products of packed features in one instruction. Compiled with -mavx512vnni besides.
#define KERNEL_NAME avx512_vnni_kernel
#define KERNEL_TEXT "avx512-vnni"
#define LANES 16
#define REGISTERS 32
#include "kernel_body.h"
