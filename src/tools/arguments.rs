//! The arguments of a call: read, checked against the tool's schema, and named by a digest. Pure.
//!
//! The digest is over the canonical form of RFC 8785, so it is the same however the model wrote the same arguments,
//! and anybody who is shown them can compute it. That form knows only such numbers as fit a double; what does not is
//! refused, because two different calls must never share a digest.

use raddle_domain::record::{MAX_DEPTH, nests_deeper};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Mistakes that a model is told of at once.
const MISTAKES: usize = 3;

/// How much of one mistake: names in it are the model's own, and of any length.
const MISTAKE_CHARS: usize = 300;

/// The largest integer that a double tells apart from its neighbours.
const LARGEST_INTEGER: u64 = (1 << 53) - 1;

/// A schema that nothing can be checked against.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its schema cannot be used: {0}")]
pub struct BadSchema(String);

/// The schema of a tool's arguments, compiled.
#[derive(Debug)]
pub struct Schema(jsonschema::Validator);

impl Schema {
    pub fn new(schema: &Value) -> Result<Self, BadSchema> {
        jsonschema::options()
            // A schema that refers to elsewhere must not make us ask there.
            .offline()
            // Linear in the text: a pattern must not be a way to keep us busy.
            .with_pattern_options(jsonschema::PatternOptions::regex())
            .build(schema)
            .map(Self)
            .map_err(|why| BadSchema(why.to_string()))
    }

    /// Reads arguments as a model wrote them. The error is a sentence for the model.
    pub fn read(&self, text: &str) -> Result<Value, String> {
        // Models write nothing for a tool without parameters.
        let text = if text.trim().is_empty() { "{}" } else { text };
        let arguments: Value = serde_json::from_str(text).map_err(|why| format!("they are not JSON: {why}"))?;
        if !arguments.is_object() {
            return Err("they are not a JSON object".to_owned());
        }
        if nests_deeper(&arguments, MAX_DEPTH) {
            return Err(format!("they nest deeper than {MAX_DEPTH} levels"));
        }
        // Without the values: the model has them, and they may be long.
        let mistakes: Vec<String> = self.0.iter_errors(&arguments).take(MISTAKES).map(|why| mistake(&why)).collect();
        if mistakes.is_empty() { Ok(arguments) } else { Err(mistakes.join("; ")) }
    }
}

fn mistake(why: &jsonschema::ValidationError<'_>) -> String {
    let said = match why.instance_path().as_str() {
        "" => why.masked_with("the object").to_string(),
        path => format!("at `{path}`: {}", why.masked_with("the value")),
    };
    match said.char_indices().nth(MISTAKE_CHARS) {
        Some((end, _)) => format!("{}…", &said[..end]),
        None => said,
    }
}

/// Lower-case hex of the SHA-256 over the canonical form. The error is a sentence for the model.
pub fn digest(arguments: &Value) -> Result<String, String> {
    if !is_exact(arguments) {
        return Err(format!("an integer is beyond ±{LARGEST_INTEGER}; write it as a string"));
    }
    let canonical =
        serde_json_canonicalizer::to_vec(arguments).map_err(|why| format!("they have no canonical form: {why}"))?;
    Ok(Sha256::digest(canonical).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Whether every number survives being a double.
fn is_exact(value: &Value) -> bool {
    match value {
        Value::Number(number) => number
            .as_u64()
            .or_else(|| number.as_i64().map(i64::unsigned_abs))
            .is_none_or(|size| size <= LARGEST_INTEGER),
        Value::Array(values) => values.iter().all(is_exact),
        Value::Object(values) => values.values().all(is_exact),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn canonical(text: &str) -> String {
        let value: Value = serde_json::from_str(text).unwrap();
        serde_json_canonicalizer::to_string(&value).unwrap()
    }

    fn digest_of(text: &str) -> String {
        digest(&serde_json::from_str(text).unwrap()).unwrap()
    }

    /// Section 3.2.2 of RFC 8785, with the bytes of section 3.2.4.
    #[test]
    fn the_canonical_form_is_that_of_the_standard() {
        let input = r#"{
            "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
            "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
            "literals": [null, true, false]
        }"#;
        let expected = concat!(
            r#"{"literals":[null,true,false],"#,
            r#""numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"#,
            r#""string":"€$\u000f\nA'B\"\\\\\"/"}"#
        );
        assert_eq!(canonical(input), expected);
        assert_eq!(digest_of(input), "2d5e01a318d0f0879ab568c4be289c8b1f64ef8921a53c6277d5e069978baacb");
        assert_eq!(digest_of("{}"), "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");
    }

    /// Section 3.2.3 of RFC 8785: by UTF-16 code units, which is not the order of the code points.
    #[test]
    fn properties_are_in_the_order_of_the_standard() {
        let input = r#"{"\u20ac": "Euro Sign", "\r": "Carriage Return", "\ufb33": "Hebrew Letter Dalet With Dagesh",
            "1": "One", "\ud83d\ude00": "Emoji: Grinning Face", "\u0080": "Control",
            "\u00f6": "Latin Small Letter O With Diaeresis"}"#;
        let names = ["Carriage", "One", "Control", "Latin", "Euro", "Emoji", "Hebrew"];
        let canonical = canonical(input);
        let places: Vec<_> = names.iter().map(|name| canonical.find(&format!("\"{name}")).unwrap()).collect();
        assert!(places.is_sorted(), "{canonical}");
    }

    /// Appendix B of RFC 8785: doubles by their bits.
    #[test]
    fn numbers_are_written_as_the_standard_writes_them() {
        for (bits, text) in [
            (0x0000_0000_0000_0000_u64, "0"),
            (0x8000_0000_0000_0000, "0"),
            (0x0000_0000_0000_0001, "5e-324"),
            (0x7fef_ffff_ffff_ffff, "1.7976931348623157e+308"),
            (0x4340_0000_0000_0000, "9007199254740992"),
            (0x4430_0000_0000_0000, "295147905179352830000"),
            (0x44b5_2d02_c7e1_4af6, "1e+23"),
            (0x444b_1ae4_d6e2_ef50, "1e+21"),
            (0x3eb0_c6f7_a0b5_ed8d, "0.000001"),
            (0x3eb0_c6f7_a0b5_ed8c, "9.999999999999997e-7"),
            (0x41b3_de43_5555_5553, "333333333.3333332"),
            (0x41b3_de43_5555_5555, "333333333.3333333"),
            (0xbecb_f647_612f_3696, "-0.0000033333333333333333"),
            (0x4314_3ff3_c1cb_0959, "1424953923781206.2"),
        ] {
            let double = f64::from_bits(bits);
            assert_eq!(serde_json_canonicalizer::to_string(&json!(double)).unwrap(), text);
            // What is read back is the same double, to the last bit; of the two zeros, one.
            assert_eq!(serde_json::from_str::<f64>(text).unwrap(), double);
        }
    }

    #[test]
    fn the_same_arguments_have_one_digest_however_they_are_written() {
        let one = digest_of(r#"{"b":[1,2.50],"a":"\u00e9/"}"#);
        assert_eq!(digest_of("{ \"a\": \"é\\/\",\n \"b\": [1.0, 25e-1] }"), one);
        assert_ne!(digest_of(r#"{"b":[2.5,1],"a":"é/"}"#), one);
    }

    #[test]
    fn integers_that_would_share_a_digest_are_refused() {
        let refused = |value: Value| digest(&value).unwrap_err();
        for value in [json!({"n": 9_007_199_254_740_992_u64}), json!({"n": [{"m": -9_007_199_254_740_993_i64}]})] {
            assert_eq!(refused(value), "an integer is beyond ±9007199254740991; write it as a string");
        }
        assert!(digest(&json!({"n": 9_007_199_254_740_991_u64, "m": -9_007_199_254_740_991_i64})).is_ok());
        assert!(digest(&json!({"n": i64::MIN})).is_err() && digest(&json!({"n": u64::MAX})).is_err());
    }

    fn read(text: &str) -> Result<Value, String> {
        let schema = json!({
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 4}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}}},
            "required": ["name"],
            "additionalProperties": false,
        });
        Schema::new(&schema).unwrap().read(text)
    }

    #[test]
    fn arguments_that_fit_are_read() {
        assert_eq!(read(" {\"name\": \"x\", \"tags\": [\"b\"]} "), Ok(json!({"name": "x", "tags": ["b"]})));
        assert_eq!(Schema::new(&json!({"type": "object"})).unwrap().read(" \n"), Ok(json!({})));
    }

    #[test]
    fn a_mistake_names_its_path_and_not_the_value() {
        let mistake = |text: &str| read(text).unwrap_err();
        assert_eq!(mistake("{}"), "\"name\" is a required property");
        assert_eq!(mistake(r#"{"name": "secret"}"#), "at `/name`: the value is longer than 4 characters");
        assert_eq!(mistake(r#"{"name": 7}"#), "at `/name`: the value is not of type \"string\"");
        assert_eq!(
            mistake(r#"{"name": "x", "tags": ["a", "c"]}"#),
            "at `/tags/1`: the value is not one of \"a\" or \"b\""
        );
        assert_eq!(
            mistake(r#"{"name": "x", "nome": 1}"#),
            "Additional properties are not allowed ('nome' was unexpected)"
        );
        let both = mistake(r#"{"tags": [1], "more": 2}"#);
        assert_eq!(both.matches("; ").count(), 2, "{both}");
    }

    #[test]
    fn a_mistake_is_cut_and_there_are_not_many() {
        let long = format!("{{\"name\": \"x\", \"{}\": 1}}", "é".repeat(10_000));
        assert_eq!(read(&long).unwrap_err().chars().count(), MISTAKE_CHARS + 1);
        let tags = "7,".repeat(1_000);
        assert_eq!(read(&format!("{{\"name\": \"x\", \"tags\": [{tags}7]}}")).unwrap_err().matches("at `").count(), 3);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(read("{\"name\"").unwrap_err().starts_with("they are not JSON: "));
        for text in ["[]", "\"x\"", "null", "7"] {
            assert_eq!(read(text).unwrap_err(), "they are not a JSON object");
        }
        let deep = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        let any = Schema::new(&json!({})).unwrap();
        assert!(any.read(&deep(MAX_DEPTH - 1)).is_ok());
        assert_eq!(any.read(&deep(MAX_DEPTH)).unwrap_err(), "they nest deeper than 64 levels");
        assert!(any.read(&deep(10_000)).unwrap_err().starts_with("they are not JSON: "));
    }

    #[test]
    fn a_schema_that_refers_to_elsewhere_is_refused() {
        let elsewhere = json!({"properties": {"name": {"$ref": "https://example.org/name.json"}}});
        assert!(Schema::new(&elsewhere).is_err());
        let file = json!({"properties": {"name": {"$ref": "file:///etc/hostname"}}});
        assert!(Schema::new(&file).is_err());
        assert!(Schema::new(&json!({"type": "nonsense"})).is_err());
    }

    /// JSON objects of any shape, with every sort of number.
    fn objects() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-9_007_199_254_740_991_i64..=9_007_199_254_740_991).prop_map(Value::from),
            any::<f64>().prop_filter("JSON has no such number", |double| double.is_finite()).prop_map(Value::from),
            "\\PC{0,6}".prop_map(Value::from),
        ];
        let inner = leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("\\PC{0,4}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        });
        proptest::collection::btree_map("\\PC{0,4}", inner, 0..4)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn a_digest_survives_being_written_and_read(value in objects()) {
            let digest = digest(&value).unwrap();
            let again: Value = serde_json::from_str(&value.to_string()).unwrap();
            prop_assert_eq!(super::digest(&again).unwrap(), digest.clone());
            let canonical = serde_json_canonicalizer::to_string(&value).unwrap();
            let again: Value = serde_json::from_str(&canonical).unwrap();
            // A double that is an integer is written as one, and may then be too large to be told apart.
            if is_exact(&again) {
                prop_assert_eq!(super::digest(&again).unwrap(), digest);
            }
        }
    }
}
