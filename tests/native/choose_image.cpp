// The choice of a kernel's image, with a table of images that hold nothing.
#include "driver.h"

namespace corrflow {

static const unsigned char NOTHING[] = {0};
static const Image IMAGES[] = {{75, NOTHING}, {80, NOTHING},  {86, NOTHING},  {87, NOTHING}, {90, NOTHING},
                               {100, NOTHING}, {120, NOTHING}, {0, NOTHING}};
const Kernel KERNELS[] = {{1, 1, 0, 0, 1.0f, 1, 0, nullptr, 16, 8, 1, 256, 8, IMAGES}};
const int32_t NUM_KERNELS = 1;
const char ENTRY_POINT[] = "none", KERNEL_HASH[] = "none";

}  // namespace corrflow

extern "C" int image_for(int architecture) {
    const corrflow::Image* image = corrflow::choose_image(corrflow::KERNELS[0], architecture);
    return image ? image->architecture : -1;
}
