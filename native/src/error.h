// Every error of the loader. The binding maps each one to one Python exception.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace stoker {

// A system call failed. `code` is its errno; `path` is empty where no file is concerned.
class SystemError : public std::runtime_error {
 public:
  SystemError(int code, const std::string& action, std::string path = {});

  int code;
  std::string path;
};

// A safetensors header breaks the format. `offset` is the position in the file.
class HeaderError : public std::runtime_error {
 public:
  HeaderError(std::string kind, std::uint64_t offset, const std::string& message);

  std::string kind;
  std::uint64_t offset;
};

// The bytes of a chunk do not have the digest they should have. Digests are hex.
class ChunkError : public std::runtime_error {
 public:
  ChunkError(std::size_t ordinal, std::string path, std::uint64_t offset, std::string expected,
             std::string found);

  std::size_t ordinal;
  std::string path;
  std::uint64_t offset;
  std::string expected;
  std::string found;
};

class Cancelled : public std::runtime_error {
 public:
  Cancelled();
};

class PoolExhausted : public std::runtime_error {
 public:
  PoolExhausted(std::size_t wanted, std::size_t free);
};

// A call of the CUDA driver failed. `code` is its CUresult and `call` the function's name, or
// "dlopen" or "dlsym" where the driver itself could not be had.
class DeviceError : public std::runtime_error {
 public:
  DeviceError(int code, std::string call, const std::string& message);

  bool is_out_of_memory() const { return code == 2; }

  int code;
  std::string call;
};

}  // namespace stoker
