#include "file_descriptor.h"

#include <unistd.h>

#include <utility>

namespace stoker {

Descriptor::Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

Descriptor::~Descriptor() {
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace stoker
