//! The table of functions.

use super::super::authorizer;
use super::{Cost, Declaration, Run, foreign, lists, operators, strings, time};

macro_rules! declare {
    ($($name:literal [$($overload:literal),+ $(,)?] $cost:expr, $run:expr;)+) => {
        &[$(Declaration { name: $name, overloads: &[$($overload),+], cost: $cost, run: $run }),+]
    };
}

use Cost::{Both, Elements, Fixed, Regex, Search, Selector, Smaller, Traverse, Unit};
use Run::{Foreign, Native};

pub(in super::super) const FUNCTIONS: &[Declaration] = declare! {
    "_+_" [
        "(int, int) int", "(uint, uint) uint", "(double, double) double", "(string, string) string",
        "(bytes, bytes) bytes", "(list(A), list(A)) list(A)", "(duration, duration) duration",
        "(duration, timestamp) timestamp", "(timestamp, duration) timestamp",
    ] Both, Native(operators::add);
    "_-_" [
        "(int, int) int", "(uint, uint) uint", "(double, double) double", "(duration, duration) duration",
        "(timestamp, timestamp) duration", "(timestamp, duration) timestamp",
    ] Unit, Native(operators::subtract);
    "_*_" ["(int, int) int", "(uint, uint) uint", "(double, double) double"] Unit, Native(operators::multiply);
    "_/_" ["(int, int) int", "(uint, uint) uint", "(double, double) double"] Unit, Native(operators::divide);
    "_%_" ["(int, int) int", "(uint, uint) uint"] Unit, Native(operators::modulo);
    "-_" ["(int) int", "(double) double"] Unit, Native(operators::negate);
    "!_" ["(bool) bool"] Unit, Native(operators::not);
    "_==_" ["(A, A) bool"] Smaller, Native(operators::equal);
    "_!=_" ["(A, A) bool"] Smaller, Native(operators::not_equal);
    "_<_" [
        "(bool, bool) bool", "(int, int) bool", "(int, double) bool", "(int, uint) bool", "(uint, uint) bool",
        "(uint, double) bool", "(uint, int) bool", "(double, double) bool", "(double, int) bool",
        "(double, uint) bool", "(string, string) bool", "(bytes, bytes) bool", "(timestamp, timestamp) bool",
        "(duration, duration) bool",
    ] Smaller, Native(operators::less);
    "_<=_" [
        "(bool, bool) bool", "(int, int) bool", "(int, double) bool", "(int, uint) bool", "(uint, uint) bool",
        "(uint, double) bool", "(uint, int) bool", "(double, double) bool", "(double, int) bool",
        "(double, uint) bool", "(string, string) bool", "(bytes, bytes) bool", "(timestamp, timestamp) bool",
        "(duration, duration) bool",
    ] Smaller, Native(operators::less_equal);
    "_>_" [
        "(bool, bool) bool", "(int, int) bool", "(int, double) bool", "(int, uint) bool", "(uint, uint) bool",
        "(uint, double) bool", "(uint, int) bool", "(double, double) bool", "(double, int) bool",
        "(double, uint) bool", "(string, string) bool", "(bytes, bytes) bool", "(timestamp, timestamp) bool",
        "(duration, duration) bool",
    ] Smaller, Native(operators::greater);
    "_>=_" [
        "(bool, bool) bool", "(int, int) bool", "(int, double) bool", "(int, uint) bool", "(uint, uint) bool",
        "(uint, double) bool", "(uint, int) bool", "(double, double) bool", "(double, int) bool",
        "(double, uint) bool", "(string, string) bool", "(bytes, bytes) bool", "(timestamp, timestamp) bool",
        "(duration, duration) bool",
    ] Smaller, Native(operators::greater_equal);
    "@in" ["(A, list(A)) bool", "(A, map(A, B)) bool"] Cost::In, Native(operators::contained);

    "size" [
        "(string) int", "string.() int", "(bytes) int", "bytes.() int", "(list(A)) int", "list(A).() int",
        "(map(A, B)) int", "map(A, B).() int",
    ] Unit, Native(operators::size_of);
    "type" ["(A) type"] Unit, Native(operators::type_of);
    "dyn" ["(A) dyn"] Unit, Native(operators::identity);
    "bool" ["(bool) bool", "(string) bool"] Unit, Native(operators::to_bool);
    "int" [
        "(int) int", "(uint) int", "(double) int", "(string) int", "(timestamp) int", "(duration) int",
    ] Unit, Native(operators::to_int);
    "uint" ["(uint) uint", "(int) uint", "(double) uint", "(string) uint"] Unit, Native(operators::to_uint);
    "double" ["(double) double", "(int) double", "(uint) double", "(string) double"] Unit,
        Native(operators::to_double);
    "string" [
        "(string) string", "(int) string", "(uint) string", "(double) string", "(bool) string", "(bytes) string",
        "(timestamp) string", "(duration) string", "(ip) string", "(cidr) string",
    ] Unit, Native(operators::to_string);
    "bytes" ["(bytes) bytes", "(string) bytes"] Traverse(1), Native(operators::to_bytes);
    "duration" ["(duration) duration", "(string) duration"] Unit, Native(time::to_duration);
    "timestamp" ["(timestamp) timestamp", "(string) timestamp", "(int) timestamp"] Unit, Native(time::to_timestamp);

    "contains" ["string.(string) bool"] Search, Native(strings::contains);
    "startsWith" ["string.(string) bool"] Traverse(1), Native(strings::starts_with);
    "endsWith" ["string.(string) bool"] Traverse(1), Native(strings::ends_with);
    "matches" ["string.(string) bool", "(string, string) bool"] Regex, Native(strings::matches);
    "find" ["string.(string) string"] Regex, Native(strings::find);
    "findAll" ["string.(string) list(string)", "string.(string, int) list(string)"] Regex, Native(strings::find_all);
    "charAt" ["string.(int) string"] Unit, Foreign;
    "lowerAscii" ["string.() string"] Traverse(1), Native(strings::lower);
    "upperAscii" ["string.() string"] Traverse(1), Native(strings::upper);
    "replace" ["string.(string, string) string", "string.(string, string, int) string"] Traverse(2), Foreign;
    "split" ["string.(string) list(string)", "string.(string, int) list(string)"] Traverse(2), Foreign;
    "substring" ["string.(int) string", "string.(int, int) string"] Traverse(1), Foreign;
    "trim" ["string.() string"] Traverse(1), Foreign;
    "join" ["list(string).() string", "list(string).(string) string"] Cost::Result, Foreign;
    "format" ["string.(list(dyn)) string"] Traverse(1), Foreign;
    "strings.quote" ["(string) string"] Traverse(1), Foreign;
    "reverse" ["list(A).() list(A)"] Elements, Native(lists::reverse);

    "isSorted" ["list(A).() bool"] Elements, Native(lists::is_sorted);
    "sum" ["list(int).() int", "list(uint).() uint", "list(double).() double", "list(duration).() duration"] Elements,
        Native(lists::sum);
    "min" ["list(A).() A"] Elements, Native(lists::min);
    "max" ["list(A).() A"] Elements, Native(lists::max);
    "indexOf" ["list(A).(A) int", "string.(string) int", "string.(string, int) int"] Elements, Native(lists::index_of);
    "lastIndexOf" ["list(A).(A) int", "string.(string) int", "string.(string, int) int"] Elements,
        Native(lists::last_index_of);
    "slice" ["list(A).(int, int) list(A)"] Elements, Native(lists::slice);
    "flatten" ["list(list(A)).() list(A)", "list(dyn).(int) list(dyn)"] Elements, Native(lists::flatten);
    "sort" ["list(A).() list(A)"] Elements, Native(lists::sort);
    "distinct" ["list(A).() list(A)"] Elements, Native(lists::distinct);
    "first" ["list(A).() optional(A)"] Unit, Native(lists::first);
    "last" ["list(A).() optional(A)"] Unit, Native(lists::last);
    "lists.range" ["(int) list(int)"] Cost::Result, Native(lists::range);
    "sets.contains" ["(list(A), list(A)) bool"] Elements, Native(lists::set_contains);
    "sets.equivalent" ["(list(A), list(A)) bool"] Elements, Native(lists::set_equivalent);
    "sets.intersects" ["(list(A), list(A)) bool"] Elements, Native(lists::set_intersects);

    "optional.of" ["(A) optional(A)"] Unit, Native(operators::optional_of);
    "optional.ofNonZeroValue" ["(A) optional(A)"] Unit, Native(operators::optional_of_non_zero);
    "optional.none" ["() optional(A)"] Unit, Native(operators::optional_none);
    "optional.unwrap" ["(list(optional(A))) list(A)"] Elements, Native(lists::unwrap_optionals);
    "unwrapOpt" ["list(optional(A)).() list(A)"] Elements, Native(lists::unwrap_optionals);
    "hasValue" ["optional(A).() bool"] Unit, Native(operators::has_value);
    "value" ["optional(A).() A"] Unit, Native(operators::value_of);

    "getFullYear" ["timestamp.() int", "timestamp.(string) int"] Unit, Native(time::full_year);
    "getMonth" ["timestamp.() int", "timestamp.(string) int"] Unit, Native(time::month);
    "getDayOfYear" ["timestamp.() int", "timestamp.(string) int"] Unit, Native(time::day_of_year);
    "getDayOfMonth" ["timestamp.() int", "timestamp.(string) int"] Unit, Native(time::day_of_month);
    "getDate" ["timestamp.() int", "timestamp.(string) int"] Unit, Native(time::date);
    "getDayOfWeek" ["timestamp.() int", "timestamp.(string) int"] Unit, Native(time::day_of_week);
    "getHours" ["timestamp.() int", "timestamp.(string) int", "duration.() int"] Unit, Native(time::hours);
    "getMinutes" ["timestamp.() int", "timestamp.(string) int", "duration.() int"] Unit, Native(time::minutes);
    "getSeconds" ["timestamp.() int", "timestamp.(string) int", "duration.() int"] Unit, Native(time::seconds);
    "getMilliseconds" ["timestamp.() int", "timestamp.(string) int", "duration.() int"] Unit,
        Native(time::milliseconds);

    "quantity" ["(string) quantity"] Traverse(1), Foreign;
    "isQuantity" ["(string) bool"] Traverse(1), Foreign;
    "sign" ["quantity.() int"] Unit, Foreign;
    "isInteger" ["quantity.() bool"] Unit, Foreign;
    "asInteger" ["quantity.() int"] Unit, Foreign;
    "asApproximateFloat" ["quantity.() double"] Unit, Foreign;
    "add" ["quantity.(quantity) quantity", "quantity.(int) quantity"] Unit, Foreign;
    "sub" ["quantity.(quantity) quantity", "quantity.(int) quantity"] Unit, Foreign;
    "isGreaterThan" ["quantity.(quantity) bool", "semver.(semver) bool"] Unit, Foreign;
    "isLessThan" ["quantity.(quantity) bool", "semver.(semver) bool"] Unit, Foreign;
    "compareTo" ["quantity.(quantity) int", "semver.(semver) int"] Unit, Foreign;
    "semver" ["(string) semver", "(string, bool) semver"] Traverse(1), Foreign;
    "isSemver" ["(string) bool", "(string, bool) bool"] Traverse(1), Foreign;
    "major" ["semver.() int"] Unit, Foreign;
    "minor" ["semver.() int"] Unit, Foreign;
    "patch" ["semver.() int"] Unit, Foreign;

    "url" ["(string) url"] Traverse(1), Foreign;
    "isURL" ["(string) bool"] Traverse(1), Foreign;
    "getScheme" ["url.() string"] Unit, Foreign;
    "getHost" ["url.() string"] Unit, Foreign;
    "getHostname" ["url.() string"] Unit, Foreign;
    "getPort" ["url.() string"] Unit, Foreign;
    "getEscapedPath" ["url.() string"] Unit, Foreign;
    "getQuery" ["url.() map(string, list(string))"] Unit, Foreign;

    "ip" ["(string) ip", "cidr.() ip"] Traverse(1), Foreign;
    "isIP" ["(string) bool"] Traverse(1), Foreign;
    "ip.isCanonical" ["(string) bool"] Traverse(2), Foreign;
    "family" ["ip.() int"] Unit, Foreign;
    "isUnspecified" ["ip.() bool"] Unit, Foreign;
    "isLoopback" ["ip.() bool"] Unit, Foreign;
    "isLinkLocalMulticast" ["ip.() bool"] Unit, Foreign;
    "isLinkLocalUnicast" ["ip.() bool"] Unit, Foreign;
    "isGlobalUnicast" ["ip.() bool"] Unit, Foreign;
    "cidr" ["(string) cidr"] Traverse(1), Foreign;
    "isCIDR" ["(string) bool"] Traverse(1), Foreign;
    "containsIP" ["cidr.(string) bool", "cidr.(ip) bool"] Both, Foreign;
    "containsCIDR" ["cidr.(string) bool", "cidr.(cidr) bool"] Both, Foreign;
    "prefixLength" ["cidr.() int"] Unit, Foreign;
    "masked" ["cidr.() cidr"] Unit, Foreign;

    "format.named" ["(string) optional(format)"] Unit, Native(foreign::named_format);
    "format.dns1123Label" ["() format"] Unit, Foreign;
    "format.dns1123Subdomain" ["() format"] Unit, Foreign;
    "format.dns1035Label" ["() format"] Unit, Foreign;
    "format.dns1123LabelPrefix" ["() format"] Unit, Foreign;
    "format.dns1123SubdomainPrefix" ["() format"] Unit, Foreign;
    "format.dns1035LabelPrefix" ["() format"] Unit, Foreign;
    "format.qualifiedName" ["() format"] Unit, Foreign;
    "format.labelValue" ["() format"] Unit, Foreign;
    "format.uri" ["() format"] Unit, Foreign;
    "format.uuid" ["() format"] Unit, Foreign;
    "format.byte" ["() format"] Unit, Foreign;
    "format.date" ["() format"] Unit, Foreign;
    "format.datetime" ["() format"] Unit, Foreign;
    "validate" ["format.(string) optional(list(string))"] Cost::Format, Foreign;

    "jsonpatch.escapeKey" ["(string) string"] Traverse(1), Native(strings::escape_key);

    "path" ["authorizer.(string) path_check"] Unit, Native(authorizer::path);
    "group" ["authorizer.(string) group_check"] Unit, Native(authorizer::group);
    "serviceAccount" ["authorizer.(string, string) authorizer"] Unit, Native(authorizer::service_account);
    "resource" ["group_check.(string) resource_check"] Unit, Native(authorizer::resource);
    "subresource" ["resource_check.(string) resource_check"] Unit, Native(authorizer::subresource);
    "namespace" ["resource_check.(string) resource_check"] Unit, Native(authorizer::namespace);
    "name" ["resource_check.(string) resource_check"] Unit, Native(authorizer::name);
    "fieldSelector" ["resource_check.(string) resource_check"] Selector, Native(authorizer::field_selector);
    "labelSelector" ["resource_check.(string) resource_check"] Selector, Native(authorizer::label_selector);
    "check" ["path_check.(string) decision", "resource_check.(string) decision"] Fixed(350_000),
        Native(authorizer::check);
    "allowed" ["decision.() bool"] Unit, Native(authorizer::allowed);
    "reason" ["decision.() string"] Unit, Native(authorizer::reason);
    "errored" ["decision.() bool"] Unit, Native(authorizer::errored);
    "error" ["decision.() string"] Unit, Native(authorizer::error);
    "or" ["optional(A).(optional(A)) optional(A)"] Unit, Native(operators::optional_or);
    "orValue" ["optional(A).(A) A"] Unit, Native(operators::optional_or_value);
};
