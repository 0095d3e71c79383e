//! The house: which module may use which (ARCHITECTURE.md), and that no file becomes the place
//! where everything lives.

use std::path::{Path, PathBuf};

/// Each module of `src/` with the modules that it may name.
const ARROWS: &[(&str, &[&str])] = &[
    ("units", &["limits"]),
    ("limits", &["units"]),
    ("settings", &["units", "limits", "url"]),
    ("planted", &[]),
    ("batch", &["units", "limits", "planted"]),
    ("url", &["units", "limits"]),
    ("wire", &["units", "limits", "settings", "batch", "url"]),
    ("log", &["units", "limits", "settings", "batch", "planted"]),
    ("broker", &["units", "limits", "settings", "planted"]),
    ("store", &["units", "limits"]),
    ("stat", &["units", "limits"]),
    (
        "server",
        &[
            "units", "limits", "settings", "batch", "wire", "log", "broker", "stat", "store",
            "planted", "url",
        ],
    ),
    ("client", &["units", "limits", "settings", "batch", "wire", "store", "url"]),
    (
        "pipe",
        &["units", "limits", "settings", "batch", "wire", "store", "client", "planted", "url"],
    ),
    ("cli", &["units", "limits", "settings", "wire", "store", "client", "url"]),
    ("remote", &["units", "limits", "settings", "batch", "wire", "url"]),
    ("view", &["units", "limits", "settings", "wire", "cli"]),
];

const LINES_MAX: usize = 700;

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("src is there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// The modules of this crate that a line names with `crate::`.
fn named(line: &str) -> impl Iterator<Item = &str> {
    line.split("crate::").skip(1).flat_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        (end > 0).then(|| &rest[..end])
    })
}

#[test]
fn modules_use_only_what_stands_below_them() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong = Vec::new();
    let mut looked_at = 0;
    for file in &files {
        let inside = file.strip_prefix(&src).expect("below src");
        let first = inside.components().next().expect("a name").as_os_str().to_string_lossy();
        let module = first.trim_end_matches(".rs");
        if matches!(module, "lib" | "bin") {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!("{}: module {module} is not in the list", inside.display()));
            continue;
        };
        let text = std::fs::read_to_string(file).expect("readable");
        for (number, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for other in named(line) {
                looked_at += 1;
                if other != module && !allowed.contains(&other) {
                    wrong.push(format!("{}:{}: uses {other}", inside.display(), number + 1));
                }
            }
        }
    }
    assert!(looked_at > 50, "the test does not find what modules name");
    assert!(wrong.is_empty(), "arrows that are not in ARCHITECTURE.md:\n{}", wrong.join("\n"));
}

#[test]
fn no_file_is_the_place_where_everything_lives() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let long: Vec<String> = files
        .iter()
        .map(|file| (file, std::fs::read_to_string(file).expect("readable").lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(file, lines)| format!("{}: {lines} lines", file.display()))
        .collect();
    assert!(long.is_empty(), "files over {LINES_MAX} lines:\n{}", long.join("\n"));
}

/// Whoever looks for what catches a planted bug finds it.
#[test]
fn every_planted_bug_stands_in_the_documentation() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/README.md");
    let page = std::fs::read_to_string(page).expect("tests/README.md");
    for bug in mq::planted::Bug::ALL {
        let row = format!("| `{}` |", bug.name());
        assert!(page.contains(&row), "{} is not in tests/README.md", bug.name());
    }
}

/// Who does not want engines gets none of what they need: `cargo install` builds in a minute, anywhere.
#[test]
fn the_core_needs_no_async_runtime_and_no_c_library() {
    let args = ["tree", "--locked", "--offline", "-e", "normal,build", "--prefix", "none"];
    let output = std::process::Command::new(env!("CARGO"))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo tree: {said}");
    let tree = String::from_utf8(output.stdout).expect("text");
    let crates: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(crates.contains(&"mio"), "the list of crates is not read as it should be:\n{tree}");
    let runtimes = ["tokio", "async-std", "smol", "async-io", "async-executor", "futures-executor"];
    let builds_c = ["cc", "cmake", "bindgen", "pkg-config", "vcpkg", "ring"];
    let binds_c = |name: &str| name.ends_with("-sys") && name != "linux-raw-sys";
    let unwanted =
        |name: &&&str| runtimes.contains(*name) || builds_c.contains(*name) || binds_c(name);
    let found: Vec<&&str> = crates.iter().filter(unwanted).collect();
    assert!(found.is_empty(), "the core needs {found:?}; see cargo tree -i");
}
