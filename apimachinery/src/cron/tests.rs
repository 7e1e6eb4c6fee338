use super::*;

#[test]
fn what_is_no_schedule() {
    for (bad, want) in [
        ("", "empty spec string"),
        ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
        ("60 * * * *", "end of range (60) above maximum (59): 60"),
        ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
        ("* * * * 7", "end of range (7) above maximum (6): 7"),
        (
            "5-1 * * * *",
            "beginning of range (5) beyond end of range (1): 5-1",
        ),
        (
            "*/0 * * * *",
            "step of range should be a positive number: */0",
        ),
        ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
        ("*/2/3 * * * *", "too many slashes: */2/3"),
        ("*/-2 * * * *", "negative number (-2) not allowed: -2"),
        (
            "x * * * *",
            "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax",
        ),
        (
            "* * * */jan *",
            "failed to parse int from jan: strconv.Atoi: parsing \"jan\": invalid syntax",
        ),
        (
            "99999999999999999999 * * * *",
            "failed to parse int from 99999999999999999999: strconv.Atoi: parsing \"99999999999999999999\": value out of range",
        ),
        ("@never", "unrecognized descriptor: @never"),
        ("@every", "unrecognized descriptor: @every"),
        (
            "@every 5",
            "failed to parse duration @every 5: time: missing unit in duration \"5\"",
        ),
        (
            "@every 5d",
            "failed to parse duration @every 5d: time: unknown unit \"d\" in duration \"5d\"",
        ),
        (
            "@every x",
            "failed to parse duration @every x: time: invalid duration \"x\"",
        ),
        (
            "TZ=Mars/Base @hourly",
            "provided bad location Mars/Base: unknown time zone Mars/Base",
        ),
        (
            "TZ=0",
            "invalid schedule format: nothing follows the time zone",
        ),
    ] {
        assert_eq!(Schedule::parse(bad).unwrap_err(), want, "{bad:?}");
    }
}

#[test]
fn zones_are_named_exactly() {
    for (name, known) in [
        ("", true),
        ("UTC", true),
        ("Etc/UTC", true),
        ("Europe/Rome", true),
        ("US/Pacific", true),
        ("europe/rome", false),
        ("Mars/Base", false),
        ("+01:00", false),
    ] {
        assert_eq!(time_zone(name).is_ok(), known, "{name}");
    }
}

/// What follows a time, and what follows that: as robfig/cron has it.
#[test]
fn what_is_next() {
    let cases: &[(&str, &str, &str, &[&str])] = &[
        (
            "* * * * *",
            "UTC",
            "2026-01-01T00:00:30Z",
            &["2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z"],
        ),
        (
            "* * * * *",
            "UTC",
            "2026-01-01T00:00:59.9Z",
            &["2026-01-01T00:01:00Z"],
        ),
        (
            "*/15 8-9 * * *",
            "UTC",
            "2026-01-01T09:40:00Z",
            &["2026-01-01T09:45:00Z", "2026-01-02T08:00:00Z"],
        ),
        (
            "50/5 * * * *",
            "UTC",
            "2026-01-01T00:00:00Z",
            &[
                "2026-01-01T00:50:00Z",
                "2026-01-01T00:55:00Z",
                "2026-01-01T01:50:00Z",
            ],
        ),
        (
            "0 0 1,15 * *",
            "UTC",
            "2026-01-01T00:00:00Z",
            &["2026-01-15T00:00:00Z", "2026-02-01T00:00:00Z"],
        ),
        (
            "0 0 * feb MON",
            "UTC",
            "2026-01-01T00:00:00Z",
            &["2026-02-02T00:00:00Z", "2026-02-09T00:00:00Z"],
        ),
        // Either of the two day fields, unless one has a star: `*/2` is none any more, `*/1` still is.
        (
            "0 0 13 * 5",
            "UTC",
            "2026-01-01T00:00:00Z",
            &[
                "2026-01-02T00:00:00Z",
                "2026-01-09T00:00:00Z",
                "2026-01-13T00:00:00Z",
            ],
        ),
        (
            "0 0 ? * 5",
            "UTC",
            "2026-01-01T00:00:00Z",
            &["2026-01-02T00:00:00Z", "2026-01-09T00:00:00Z"],
        ),
        (
            "0 0 */10 * 5",
            "UTC",
            "2026-01-01T00:00:00Z",
            &[
                "2026-01-02T00:00:00Z",
                "2026-01-09T00:00:00Z",
                "2026-01-11T00:00:00Z",
            ],
        ),
        (
            "0 0 */1 * 5",
            "UTC",
            "2026-01-01T00:00:00Z",
            &["2026-01-02T00:00:00Z", "2026-01-09T00:00:00Z"],
        ),
        (
            "0 0 29 2 *",
            "UTC",
            "2026-01-01T00:00:00Z",
            &["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"],
        ),
        ("59 23 31 2 *", "UTC", "2026-01-01T00:00:00Z", &[]),
        // No values at all.
        (", * * * *", "UTC", "2026-01-01T00:00:00Z", &[]),
        (
            "@hourly",
            "UTC",
            "2026-01-01T00:00:00Z",
            &["2026-01-01T01:00:00Z"],
        ),
        (
            "@weekly",
            "UTC",
            "2026-01-01T00:00:00Z",
            &["2026-01-04T00:00:00Z"],
        ),
        (
            "@monthly",
            "UTC",
            "2026-01-01T00:00:00Z",
            &["2026-02-01T00:00:00Z"],
        ),
        (
            "@yearly",
            "UTC",
            "2026-01-01T00:00:00Z",
            &["2027-01-01T00:00:00Z"],
        ),
        (
            "@every 1h30m",
            "UTC",
            "2026-01-01T00:00:00.5Z",
            &["2026-01-01T01:30:00Z", "2026-01-01T03:00:00Z"],
        ),
        (
            "@every 1.5s",
            "UTC",
            "2026-01-01T00:00:00Z",
            &["2026-01-01T00:00:01Z"],
        ),
        (
            "@every 5ms",
            "UTC",
            "2026-01-01T00:00:00Z",
            &["2026-01-01T00:00:01Z"],
        ),
        (
            "0 9 * * *",
            "Asia/Kolkata",
            "2026-01-01T00:00:00Z",
            &["2026-01-01T03:30:00Z", "2026-01-02T03:30:00Z"],
        ),
        (
            "TZ=Asia/Kolkata 0 9 * * *",
            "Europe/Rome",
            "2026-01-01T00:00:00Z",
            &["2026-01-01T03:30:00Z"],
        ),
        (
            "CRON_TZ=UTC @daily",
            "Europe/Rome",
            "2026-01-01T00:00:00Z",
            &["2026-01-02T00:00:00Z"],
        ),
        // Clocks skip 02:00 to 03:00 on 29 March 2026: nothing is due on that day.
        (
            "30 2 * * *",
            "Europe/Rome",
            "2026-03-28T00:00:00Z",
            &["2026-03-28T01:30:00Z", "2026-03-30T00:30:00Z"],
        ),
        (
            "0 3 * * *",
            "Europe/Rome",
            "2026-03-28T12:00:00Z",
            &["2026-03-29T01:00:00Z", "2026-03-30T01:00:00Z"],
        ),
        (
            "0 * * * *",
            "Europe/Rome",
            "2026-03-29T00:00:00Z",
            &["2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z"],
        ),
        // They repeat it on 25 October.
        (
            "30 2 * * *",
            "Europe/Rome",
            "2026-10-24T12:00:00Z",
            &[
                "2026-10-25T00:30:00Z",
                "2026-10-25T01:30:00Z",
                "2026-10-26T01:30:00Z",
            ],
        ),
        (
            "0 1 * * *",
            "Europe/Rome",
            "2026-10-24T12:00:00Z",
            &["2026-10-24T23:00:00Z", "2026-10-26T00:00:00Z"],
        ),
        // A day without a midnight: 4 November 2018.
        (
            "0 12 4 * *",
            "America/Sao_Paulo",
            "2018-10-10T00:00:00Z",
            &["2018-11-04T14:00:00Z"],
        ),
    ];
    for (schedule, zone, after, want) in cases {
        let zone = time_zone(zone).unwrap();
        let parsed = Schedule::parse(schedule).unwrap();
        let mut at: Timestamp = after.parse().unwrap();
        for want in *want {
            let want: Timestamp = want.parse().unwrap();
            let next = parsed.next(at, &zone).unwrap();
            assert_eq!(next, want, "{schedule} after {at}");
            at = next;
        }
        if want.is_empty() {
            assert_eq!(parsed.next(at, &zone), None, "{schedule}");
        }
    }
}
