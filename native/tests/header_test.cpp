#include "header.h"

#include <chrono>
#include <string>
#include <vector>

#include "check.h"
#include "error.h"

namespace {

std::string file_of(const std::string& json, std::size_t data_bytes) {
  std::string file;
  for (std::size_t byte = 0; byte < 8; ++byte)
    file.push_back(static_cast<char>((json.size() >> (8 * byte)) & 0xFF));
  return file + json + std::string(data_bytes, '\0');
}

stoker::Header parse(const std::string& file) {
  return stoker::parse_header(std::as_bytes(std::span(file)), file.size());
}

std::string kind_of(const std::string& file) {
  try {
    parse(file);
  } catch (const stoker::HeaderError& error) {
    return error.kind;
  }
  return "none";
}

std::string kind_of(const std::string& json, std::size_t data_bytes) {
  return kind_of(file_of(json, data_bytes));
}

std::string entry(const std::string& name, std::size_t begin, std::size_t end) {
  return "\"" + name + "\":{\"dtype\":\"U8\",\"shape\":[" + std::to_string(end - begin) +
         "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
}

std::string many_entries(std::size_t count) {
  std::string json = "{";
  for (std::size_t index = 0; index < count; ++index)
    json += (index ? "," : "") +
            entry("model.layers.weight." + std::to_string(index), index, index + 1);
  return json + "}";
}

template <typename Action>
double seconds_of(const Action& action) {
  const auto begin = std::chrono::steady_clock::now();
  action();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

TEST(a_header_gives_its_tensors_in_the_order_of_the_data) {
  const stoker::Header header = parse(
      file_of("{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"F32\",\"shape\":[2,1],"
              "\"data_offsets\":[2,10]}, \"a\\u00e9\" : {\"data_offsets\":[0,2],\"shape\":[],"
              "\"dtype\":\"BF16\"}}  ",
              10));
  CHECK(header.tensors.size() == 2);
  CHECK(header.tensors[0].name == "a\xC3\xA9" && header.tensors[0].dtype == "BF16");
  CHECK(header.tensors[0].shape.empty());
  CHECK(header.tensors[1].name == "b" && header.tensors[1].begin == 2 &&
        header.tensors[1].end == 10);
  CHECK(header.metadata.size() == 1 && header.metadata[0].second == "pt");
}

TEST(empty_tensors_and_empty_headers_are_valid) {
  CHECK(kind_of("{}", 0) == "none");
  CHECK(kind_of("{\"__metadata__\":null}", 0) == "none");
  CHECK(kind_of("{" + entry("a", 0, 0) + "," + entry("b", 0, 3) + "," + entry("c", 3, 3) + "}",
                3) == "none");
  CHECK(kind_of("{\"a\":{\"dtype\":\"F4\",\"shape\":[4],\"data_offsets\":[0,2]}}", 2) == "none");
}

TEST(faults_of_the_frame_have_their_kind) {
  CHECK(kind_of("1234567") == "short_file");
  CHECK(kind_of(std::string(8, '\xFF')) == "header_length");
  CHECK(kind_of(std::string("\x09\0\0\0\0\0\0\0{}", 10)) == "beyond_file");
  const std::string file = file_of("{}", 0);
  const auto error = THROWN(stoker::HeaderError("", 0, ""),
                            stoker::parse_header(std::as_bytes(std::span(file)).first(9), 10));
  CHECK(error.kind == "truncated" && error.offset == 9);
}

TEST(faults_of_the_json_have_their_kind) {
  for (const char* json : {"", "[", "{", "{\"a", "{\"a\"}", "{\"a\":1}", "{}x", "{,}", "{\"a\":{}}",
                           "{\"\\x\":{}}", "{\"a\n\":{}}", "{\"\\u12g4\":{}}", "{\"\\u12", "{\"\\"})
    CHECK(kind_of(json, 0) == "json");
  for (const char* number :
       {"-1", "1.0", "1e3", "01", "18446744073709551616", "\"1\"", "null", "[1]"})
    CHECK(kind_of(std::string("{\"a\":{\"dtype\":\"U8\",\"shape\":[") + number +
                      "],\"data_offsets\":[0,1]}}",
                  1) == "json");
  CHECK(kind_of(std::string(1'000'000, '['), 0) == "json");
  CHECK(kind_of("{\"__metadata__\":{\"a\":1}}", 0) == "json");
}

TEST(faults_of_the_encoding_have_their_kind) {
  for (const char* name : {"\xFF", "\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xED\xA0\x80",
                           "\xF0\x80\x80\x80", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\x80",
                           "\xE2\x82", "\\ud800", "\\udc00", "\\ud800\\u0041", "\\ud800x"})
    CHECK(kind_of(std::string("{\"") + name + "\":{}}", 0) == "utf8");
  const stoker::Header header =
      parse(file_of("{\"\\ud83d\\ude00\\n\":" + entry("x", 0, 1).substr(4) + "}", 1));
  CHECK(header.tensors[0].name == "\xF0\x9F\x98\x80\n");
}

TEST(faults_of_an_entry_have_their_kind) {
  CHECK(kind_of("{" + entry("a", 0, 1) + "," + entry("a", 1, 2) + "}", 2) == "duplicate_key");
  CHECK(kind_of("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0) == "duplicate_key");
  CHECK(kind_of("{\"__metadata__\":{},\"__metadata__\":{}}", 0) == "duplicate_key");
  CHECK(kind_of("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\"}}", 0) == "duplicate_key");
  CHECK(kind_of("{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1) == "field");
  CHECK(kind_of("{\"a\":{\"other\":\"U8\"}}", 1) == "field");
  CHECK(kind_of("{\"a\":{\"dtype\":\"U7\"}}", 1) == "dtype");
}

TEST(faults_of_the_layout_have_their_kind) {
  const auto tensor = [](const std::string& dtype, const std::string& shape,
                         const std::string& offsets) {
    return "{\"a\":{\"dtype\":\"" + dtype + "\",\"shape\":[" + shape + "],\"data_offsets\":[" +
           offsets + "]}}";
  };
  CHECK(kind_of(tensor("U8", "4294967296,4294967296", "0,1"), 1) == "shape");
  CHECK(kind_of(tensor("F32", "1152921504606846976", "0,1"), 1) == "shape");
  CHECK(kind_of(tensor("F4", "3", "0,1"), 1) == "shape");
  CHECK(kind_of(tensor("U8", "1,1" + std::string(130, ' ') + ",1", "0,1"), 1) == "none");
  std::string deep = "1";
  for (int index = 0; index < 64; ++index) deep += ",1";
  CHECK(kind_of(tensor("U8", deep, "0,1"), 1) == "shape");
  CHECK(kind_of(tensor("U8", "1", "1,0"), 1) == "offsets");
  CHECK(kind_of(tensor("F32", "2", "0,4"), 8) == "offsets");
  CHECK(kind_of(tensor("U8", "2", "0,2"), 1) == "beyond_file");
  CHECK(kind_of(tensor("U8", "1", "1,2"), 2) == "hole");
  CHECK(kind_of("{" + entry("a", 0, 2) + "," + entry("b", 1, 3) + "}", 3) == "overlap");
  CHECK(kind_of("{" + entry("a", 0, 2) + "," + entry("b", 1, 1) + "}", 2) == "overlap");
  CHECK(kind_of(tensor("U8", "1", "0,1"), 2) == "trailing_bytes");
  CHECK(kind_of("{}", 1) == "trailing_bytes");
}

TEST(a_million_tensors_are_refused_before_they_are_all_read) {
  const std::string million = file_of(many_entries(1'000'000), 1'000'000);
  std::string kind;
  const double seconds = seconds_of([&] { kind = kind_of(million); });
  CHECK(kind == "too_many_tensors");
  const std::string most = file_of(many_entries(stoker::tensors_maximum), stoker::tensors_maximum);
  const double valid_seconds = seconds_of([&] { CHECK(kind_of(most) == "none"); });
  std::printf("     refused in %.0f ms, the most that is valid read in %.0f ms\n", seconds * 1e3,
              valid_seconds * 1e3);
}
