//! Policies by chance: most values are right, some nearly so.

use serde_json::{Map, Value, json};

use crate::server::{list, text};

const CIDRS: [&str; 16] = [
    "10.0.0.0/8",
    "10.0.0.0/16",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "0.0.0.0/0",
    "192.168.0.0/16",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "::/0",
    "10.0.0.1/8",
    "10.0.0.0",
    "10.0.0.0/33",
    "::ffff:10.0.0.0/104",
    "",
    "::ffff:0:0/96",
];
const WORDS: [&str; 6] = ["app", "istio-proxy", "a", "", "Not a label", "b.c"];
const NUMBERS: [i64; 7] = [1, 80, 443, 65535, 0, 65536, -1];

/// A random number generator that needs no crate (xorshift64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }

    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn of<T: Clone>(&mut self, these: &[T]) -> T {
        // What comes first comes more often, so that whole policies are right as well.
        let most = self.below(these.len()) + 1;
        these[self.below(most)].clone()
    }

    /// A value for a schema.
    pub(crate) fn value(&mut self, schema: &Value) -> Value {
        if self.once_in(200) {
            return self.of(&[Value::Null, json!([]), json!({}), json!(7), json!("seven")]);
        }
        if let Some(values) = schema["enum"].as_array()
            && !self.once_in(60)
        {
            return self.of(values);
        }
        match text(&schema["type"]) {
            "object" => self.object(schema),
            "array" => (0..self.below(4)).map(|_| self.value(&schema["items"])).collect(),
            "integer" => json!(self.of(&NUMBERS)),
            "boolean" => json!(self.once_in(2)),
            _ if schema["maxLength"] == 49 => json!(self.of(&CIDRS)),
            _ => json!(self.of(&WORDS)),
        }
    }

    fn object(&mut self, schema: &Value) -> Value {
        let mut object = Map::new();
        let required = list(schema, "required");
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            let keep = if required.contains(&json!(name)) { !self.once_in(50) } else { self.once_in(3) };
            if keep {
                object.insert(name.clone(), self.value(schema));
            }
        }
        if let Some(values) = schema.get("additionalProperties") {
            for _ in 0..self.below(3) {
                object.insert(self.of(&WORDS).to_owned(), self.value(values));
            }
        }
        if self.once_in(100) {
            object.insert("excepts".to_owned(), json!([]));
        }
        Value::Object(object)
    }
}
