#include "error.h"

#include <system_error>
#include <utility>

namespace stoker {

SystemError::SystemError(int code_, const std::string& action, std::string path_)
    : std::runtime_error(action + ": " + std::generic_category().message(code_)),
      code(code_),
      path(std::move(path_)) {}

HeaderError::HeaderError(std::string kind_, std::uint64_t offset_, const std::string& message)
    : std::runtime_error(message + " (at byte " + std::to_string(offset_) + ")"),
      kind(std::move(kind_)),
      offset(offset_) {}

ChunkError::ChunkError(std::size_t ordinal_, std::string path_, std::uint64_t offset_,
                       std::string expected_, std::string found_)
    : std::runtime_error("chunk " + std::to_string(ordinal_) + " at byte " +
                         std::to_string(offset_) + (path_.empty() ? "" : " of " + path_) +
                         ": expected digest " + expected_ + ", found " + found_),
      ordinal(ordinal_),
      path(std::move(path_)),
      offset(offset_),
      expected(std::move(expected_)),
      found(std::move(found_)) {}

Cancelled::Cancelled() : std::runtime_error("the load was cancelled") {}

PoolExhausted::PoolExhausted(std::size_t wanted, std::size_t free)
    : std::runtime_error("expected " + std::to_string(wanted) + " free chunks in the pool, found " +
                         std::to_string(free)) {}

DeviceError::DeviceError(int code_, std::string call_, const std::string& message)
    : std::runtime_error(call_ + ": " + message), code(code_), call(std::move(call_)) {}

}  // namespace stoker
