// A strict pull parser for the JSON that a safetensors header may hold.
//
// The caller asks for what the format allows at each place, so nothing nests deeper than the
// caller's own code and no input can make it recurse.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace stoker {

class Json {
 public:
  // `base` is the file offset of the text's first byte; errors name offsets in the file.
  Json(std::string_view text, std::uint64_t base) : text_(text), base_(base) {}

  void expect(char symbol);
  bool accept(char symbol);
  bool accept_null();
  // Decoded and proven to be UTF-8 without surrogates.
  std::string string();
  // A whole number from 0 to 2^64 - 1, without sign, fraction, exponent or leading zero.
  std::uint64_t integer();
  void expect_end();

  std::uint64_t offset() const { return base_ + at_; }
  [[noreturn]] void fail(const char* kind, const std::string& message) const;

 private:
  void skip_space();
  void copy_plain(std::string& out);
  void copy_utf8(std::string& out);
  void copy_escape(std::string& out);
  std::uint32_t hex4();
  unsigned char peek() const { return static_cast<unsigned char>(text_[at_]); }
  bool ended() const { return at_ >= text_.size(); }

  std::string_view text_;
  std::uint64_t base_;
  std::size_t at_ = 0;
};

}  // namespace stoker
