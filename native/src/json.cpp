#include "json.h"

#include <limits>

#include "error.h"

namespace stoker {
namespace {

bool is_space(unsigned char symbol) {
  return symbol == ' ' || symbol == '\n' || symbol == '\r' || symbol == '\t';
}

bool is_plain(unsigned char symbol) {
  return symbol >= 0x20 && symbol < 0x80 && symbol != '"' && symbol != '\\';
}

void append_utf8(std::string& out, std::uint32_t point) {
  const auto tail = [&out](std::uint32_t bits) {
    out.push_back(static_cast<char>(0x80 | (bits & 0x3F)));
  };
  if (point < 0x80) {
    out.push_back(static_cast<char>(point));
  } else if (point < 0x800) {
    out.push_back(static_cast<char>(0xC0 | (point >> 6)));
    tail(point);
  } else if (point < 0x10000) {
    out.push_back(static_cast<char>(0xE0 | (point >> 12)));
    tail(point >> 6);
    tail(point);
  } else {
    out.push_back(static_cast<char>(0xF0 | (point >> 18)));
    tail(point >> 12);
    tail(point >> 6);
    tail(point);
  }
}

// The length of a sequence by its first byte, and the least code point it may encode.
struct Lead {
  std::size_t length;
  std::uint32_t bits;
  std::uint32_t least;
};

Lead lead_of(unsigned char byte) {
  if (byte >= 0xC2 && byte <= 0xDF) return {2, byte & 0x1FU, 0x80};
  if (byte >= 0xE0 && byte <= 0xEF) return {3, byte & 0x0FU, 0x800};
  if (byte >= 0xF0 && byte <= 0xF4) return {4, byte & 0x07U, 0x10000};
  return {0, 0, 0};
}

bool is_surrogate(std::uint32_t point) { return point >= 0xD800 && point <= 0xDFFF; }

}  // namespace

void Json::fail(const char* kind, const std::string& message) const {
  throw HeaderError(kind, offset(), message);
}

void Json::skip_space() {
  while (!ended() && is_space(peek())) ++at_;
}

bool Json::accept(char symbol) {
  skip_space();
  if (ended() || text_[at_] != symbol) return false;
  ++at_;
  return true;
}

void Json::expect(char symbol) {
  if (accept(symbol)) return;
  fail("json", std::string("expected '") + symbol + "' in the header, found " +
                   (ended() ? std::string("its end") : "another character"));
}

bool Json::accept_null() {
  skip_space();
  if (text_.substr(at_, 4) != "null") return false;
  at_ += 4;
  return true;
}

void Json::expect_end() {
  skip_space();
  if (!ended()) fail("json", "expected only white space after the header's object");
}

std::string Json::string() {
  expect('"');
  std::string out;
  for (;;) {
    copy_plain(out);
    if (ended()) fail("json", "expected the end of a string, found the end of the header");
    const unsigned char symbol = peek();
    if (symbol == '"') {
      ++at_;
      return out;
    }
    if (symbol == '\\') {
      copy_escape(out);
    } else if (symbol < 0x20) {
      fail("json", "expected no control character inside a string");
    } else {
      copy_utf8(out);
    }
  }
}

void Json::copy_plain(std::string& out) {
  const std::size_t begin = at_;
  while (!ended() && is_plain(peek())) ++at_;
  out.append(text_.substr(begin, at_ - begin));
}

void Json::copy_utf8(std::string& out) {
  const Lead lead = lead_of(peek());
  if (lead.length == 0 || text_.size() - at_ < lead.length)
    fail("utf8", "expected valid UTF-8 in a string");
  std::uint32_t point = lead.bits;
  for (std::size_t index = 1; index < lead.length; ++index) {
    const auto byte = static_cast<unsigned char>(text_[at_ + index]);
    if ((byte & 0xC0) != 0x80) fail("utf8", "expected valid UTF-8 in a string");
    point = (point << 6) | (byte & 0x3FU);
  }
  if (point < lead.least || point > 0x10FFFF || is_surrogate(point))
    fail("utf8", "expected no overlong form and no surrogate in a string");
  out.append(text_.substr(at_, lead.length));
  at_ += lead.length;
}

void Json::copy_escape(std::string& out) {
  constexpr std::string_view names = "\"\\/bfnrt";
  constexpr std::string_view values = "\"\\/\b\f\n\r\t";
  if (text_.size() - at_ < 2) fail("json", "expected an escape, found the end of the header");
  const char name = text_[at_ + 1];
  if (name != 'u') {
    const std::size_t index = names.find(name);
    if (index == std::string_view::npos) fail("json", "expected one of the escapes of JSON");
    out.push_back(values[index]);
    at_ += 2;
    return;
  }
  std::uint32_t point = hex4();
  if (point >= 0xD800 && point <= 0xDBFF && text_.substr(at_, 2) == "\\u") {
    const std::uint32_t low = hex4();
    if (low < 0xDC00 || low > 0xDFFF) fail("utf8", "expected the second half of a surrogate pair");
    point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
  }
  if (is_surrogate(point)) fail("utf8", "expected no lone surrogate in a string");
  append_utf8(out, point);
}

std::uint32_t Json::hex4() {
  if (text_.size() - at_ < 6) fail("json", "expected four hex digits, found the end of the header");
  std::uint32_t value = 0;
  for (std::size_t index = 2; index < 6; ++index) {
    const char digit = text_[at_ + index];
    std::uint32_t nibble = 0;
    if (digit >= '0' && digit <= '9') {
      nibble = static_cast<std::uint32_t>(digit - '0');
    } else if (digit >= 'a' && digit <= 'f') {
      nibble = static_cast<std::uint32_t>(digit - 'a') + 10;
    } else if (digit >= 'A' && digit <= 'F') {
      nibble = static_cast<std::uint32_t>(digit - 'A') + 10;
    } else {
      fail("json", "expected four hex digits after \\u");
    }
    value = value * 16 + nibble;
  }
  at_ += 6;
  return value;
}

std::uint64_t Json::integer() {
  skip_space();
  const std::size_t begin = at_;
  std::uint64_t value = 0;
  while (!ended() && peek() >= '0' && peek() <= '9') {
    const std::uint64_t digit = peek() - static_cast<unsigned char>('0');
    if (value > (std::numeric_limits<std::uint64_t>::max() - digit) / 10)
      fail("json", "expected a number below 2^64");
    value = value * 10 + digit;
    ++at_;
  }
  if (at_ == begin) fail("json", "expected a whole number that is not negative");
  if (at_ - begin > 1 && text_[begin] == '0')
    fail("json", "expected a number without leading zero");
  if (!ended() && (text_[at_] == '.' || text_[at_] == 'e' || text_[at_] == 'E'))
    fail("json", "expected a whole number, found a fraction or exponent");
  return value;
}

}  // namespace stoker
