// Whole loads from a file to the fake device.
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "chunk.h"
#include "device_target.h"
#include "error.h"
#include "fake_cuda.h"
#include "load.h"

using stoker::chunk_bytes;

namespace {

constexpr std::size_t chunk_count = 3;
constexpr std::size_t total_bytes = 2 * chunk_bytes + 70'001;

class File {
 public:
  File() {
    const int fd = ::mkstemp(path_);
    if (fd < 0) throw std::runtime_error("no temporary file");
    ::close(fd);
    std::uint32_t state = 7;
    for (std::byte& byte : bytes) {
      state = state * 1664525 + 1013904223;
      byte = static_cast<std::byte>(state >> 24);
    }
    std::ofstream(path_, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() { ::unlink(path_); }

  std::span<const std::byte> chunk(std::size_t ordinal) const {
    const std::size_t begin = ordinal * chunk_bytes;
    return std::span(bytes).subspan(begin, std::min(chunk_bytes, total_bytes - begin));
  }
  std::vector<stoker::ReadRequest> requests() const {
    return {{path_, 0, 0}, {path_, chunk_bytes, 1}, {path_, 2 * chunk_bytes, 2}};
  }

  std::vector<std::byte> bytes = std::vector<std::byte>(total_bytes);

 private:
  char path_[32] = "/tmp/stoker-device-XXXXXX";
};

struct Case {
  File file;
  std::vector<std::size_t> sizes;
  std::vector<std::optional<stoker::Digest>> digests;
  std::shared_ptr<stoker::Device> device;
  std::shared_ptr<stoker::DeviceMemory> memory;
  std::shared_ptr<stoker::Progress> progress =
      std::make_shared<stoker::Progress>(chunk_count, total_bytes);

  Case() {
    fake_cuda_reset(1, std::size_t{1} << 30);
    for (std::size_t ordinal = 0; ordinal < chunk_count; ++ordinal) {
      sizes.push_back(file.chunk(ordinal).size());
      digests.emplace_back(stoker::digest(file.chunk(ordinal)));
    }
    device = std::make_shared<stoker::Device>(0, STOKER_FAKE_CUDA);
    memory = std::make_shared<stoker::DeviceMemory>(device, total_bytes);
  }
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;
  ~Case() {
    memory.reset();
    device.reset();
    CHECK(fake_cuda_leak_count() == 0);
    CHECK(fake_cuda_violation_count() == 0);
  }

  std::unique_ptr<stoker::Load> load(std::size_t slots) {
    auto window = std::make_shared<stoker::PinnedRange>(
        device, std::make_shared<stoker::Region>(slots * chunk_bytes));
    auto target = std::make_shared<stoker::DeviceTarget>(memory, window, std::nullopt, progress);
    return std::make_unique<stoker::Load>(target, sizes, digests, false);
  }
  bool is_whole() const {
    std::vector<std::byte> found(total_bytes);
    return fake_cuda_read(memory->address(), found.data(), total_bytes) && found == file.bytes;
  }
};

constexpr double no_deadline = 1e300;

}  // namespace

TEST(a_file_is_read_to_a_device_through_a_window) {
  for (const unsigned threads : {1U, 2U, 8U})
    for (const bool direct : {true, false}) {
      Case test;
      const auto load = test.load(1);
      load->read(test.file.requests(), threads, direct, no_deadline);
      load->finish();
      CHECK(test.progress->watermark_bytes() == total_bytes);
      CHECK(test.is_whole());
      THROWN(std::invalid_argument(""), load->write(0, "/tmp/none"));
    }
}

TEST(a_chunk_that_does_not_verify_never_reaches_the_device) {
  Case test;
  (*test.digests[1])[3] ^= 1;
  const auto load = test.load(1);
  THROWN(stoker::ChunkError(0, "", 0, "", ""),
         load->read(test.file.requests(), 1, true, no_deadline));
  // Its slot is free again, or the third chunk would wait for ever.
  load->read({test.file.requests()[2]}, 1, true, no_deadline);
  load->finish();
  CHECK(test.progress->is_ready(0) && !test.progress->is_ready(1) && test.progress->is_ready(2));
}

TEST(a_short_file_gives_the_slot_back) {
  Case test;
  const auto load = test.load(1);
  stoker::ReadRequest beyond = test.file.requests()[1];
  beyond.file_offset = total_bytes;
  CHECK(THROWN(stoker::SystemError(0, ""), load->read({beyond}, 1, true, no_deadline)).code == EIO);
  load->read(test.file.requests(), 2, true, no_deadline);
  load->finish();
  CHECK(test.is_whole());
}

TEST(a_load_is_cancelled_while_its_window_is_full) {
  Case test;
  const auto load = test.load(1);
  fake_cuda_hold(true);
  std::jthread reader(
      [&] { THROWN(stoker::Cancelled(), load->read(test.file.requests(), 3, true, no_deadline)); });
  while (fake_cuda_calls("cuEventRecord") == 0) std::this_thread::yield();
  load->cancel();
  reader.join();
  fake_cuda_hold(false);
}

TEST(a_device_that_fails_ends_the_load_with_its_error) {
  Case test;
  const auto load = test.load(1);
  fake_cuda_fail("cuMemcpyHtoDAsync_v2", 2, 719);
  const auto error = THROWN(stoker::DeviceError(0, "", ""),
                            load->read(test.file.requests(), 2, true, no_deadline));
  CHECK(error.code == 719 && error.call == "cuMemcpyHtoDAsync_v2");
  CHECK(test.progress->state() == stoker::State::failed);
  CHECK(THROWN(stoker::DeviceError(0, "", ""), load->finish()).code == 719);
}
