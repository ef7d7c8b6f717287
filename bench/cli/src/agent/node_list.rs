//! The first host of a Slurm node list.
//!
//! Contract: reads the compressed form that srun puts into SLURM_STEP_NODELIST, such as `a[07-09,12]-ib,b3`, as far as its
//! first host needs; the rest of the list is not looked at. Rank 0 runs there unless tasks are distributed arbitrarily.
//! Reference: scontrol(1), `show hostnames`.

/// The first host; `None` for a list that Slurm would not write.
pub fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list.trim();
    while !rest.is_empty() {
        let end = rest.find(['[', ',']).unwrap_or(rest.len());
        host.push_str(&rest[..end]);
        rest = &rest[end..];
        if !rest.starts_with('[') {
            break;
        }
        let (ranges, after) = rest[1..].split_once(']')?;
        host.push_str(first_number(ranges)?);
        rest = after;
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    (!host.is_empty() && host.chars().all(plain)).then_some(host)
}

/// The first number of `07-09,12`, with its leading zeros.
fn first_number(ranges: &str) -> Option<&str> {
    let first = ranges.split([',', '-']).next()?;
    (!first.is_empty() && first.bytes().all(|byte| byte.is_ascii_digit())).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_host_is_read_from_every_form_of_a_list() {
        for (list, host) in [
            ("node7", "node7"),
            ("node[07-09,12]", "node07"),
            ("node[3]", "node3"),
            ("a1,b[2-3]", "a1"),
            ("rack[1-2]-node[004-016],x", "rack1-node004"),
            ("gpu[10,12-14].example.org", "gpu10.example.org"),
        ] {
            assert_eq!(first_host(list).as_deref(), Some(host), "{list}");
        }
    }

    #[test]
    fn what_is_no_list_has_no_first_host() {
        for list in [
            "",
            "[",
            "node[",
            "node[]",
            "node[a-b]",
            ",b",
            "a b",
            "node[-3]",
        ] {
            assert_eq!(first_host(list), None, "{list}");
        }
    }
}
