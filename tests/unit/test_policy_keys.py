"""The table of keys, docs/policy.md, the samples in etc/ and the defaults of `Policy` say the same."""

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from rvpn.policy import Policy, check, load
from rvpn.policy.keys import KEYS, SECTIONS, Key

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "policy.md").read_text()


def block(key: Key) -> str:
    """Return how docs/policy.md documents a key."""
    return (
        f"### `{key.syntax}`\n\n{key.description}\n\n- Type: {key.type.name}\n- Unit: {key.unit or 'none'}\n"
        f"- Default: {f'`{key.default}`' if key.default else 'none'}\n- Example: `{key.example}`\n"
    )


class PageTests(SynchronousTestCase):
    """docs/policy.md and the table."""

    def test_sections(self) -> None:
        """The page has the sections of the table, and in each the keys of the table, in the same order."""
        found: dict[str, list[str]] = {}
        for level, name in re.findall(r"^(##|###) `(.*)`$", PAGE, re.MULTILINE):
            if level == "##":
                keys = found.setdefault(name, [])
            else:
                keys.append(name)
        expected = {
            f"[{section}]": [key.syntax for key in KEYS if key.section == section] for section in SECTIONS
        }
        self.assertEqual(found, expected)

    def test_keys(self) -> None:
        """The page documents every key with the type, unit, default and example of the table."""
        for key in KEYS:
            self.assertIn(block(key), PAGE, f"docs/policy.md should have:\n\n{block(key)}")

    def test_errors_of_the_page(self) -> None:
        """The diagnostics that the page shows are what `check` says."""
        lines = {
            4: "HeartbeatDeferTime = 5s",
            8: "Tunnel1 = 10.0.0.0/8 AUTO",
            9: "Tunel1 = x",
            10: "Tunnel2 = 10.0.0.1 AUTO",
        }
        lines |= {1: "[GENERAL]", 7: "[TUNNEL]"}
        _, diagnostics = check("\n".join(lines.get(number, "") for number in range(11))[1:], "client.policy")
        self.assertIn("\n".join(map(str, diagnostics)), PAGE)


class TableTests(SynchronousTestCase):
    """The table itself."""

    def test_defaults(self) -> None:
        """The table's defaults are those of `Policy`; those that differ by role are left to the services."""
        for key in KEYS:
            held = getattr(Policy(), key.field)
            if key.default is None or "<role>" in key.default:
                self.assertFalse(held, key.syntax)
            else:
                self.assertEqual(key.type.parse(key.default), held, key.syntax)

    def test_every_field(self) -> None:
        """Every field of `Policy` has a key, and no two keys share one."""
        self.assertEqual(sorted(key.field for key in KEYS), sorted(Policy.__slots__))

    def test_keywords_are_unique(self) -> None:
        """No keyword stands in two sections, so that a misplaced one can be told where it belongs."""
        keywords = [key.keyword.casefold() for key in KEYS]
        self.assertEqual(len(keywords), len(set(keywords)))

    def test_examples(self) -> None:
        """The table's examples together are a policy without errors that leaves no field at its default."""
        text = "\n".join(
            f"[{section}]\n" + "\n".join(key.example for key in KEYS if key.section == section)
            for section in SECTIONS
        )
        policy = load(text, "examples")
        for key in KEYS:
            self.assertNotEqual(getattr(policy, key.field), getattr(Policy(), key.field), key.syntax)


class SampleTests(SynchronousTestCase):
    """The samples in etc/."""

    def test_no_complaints(self) -> None:
        """Both samples are policies without errors and warnings, and say who they are for."""
        for role in ("client", "gateway"):
            name = f"{role}.policy"
            policy, diagnostics = check((ROOT / "etc" / name).read_bytes(), name)
            self.assertEqual(diagnostics, [])
            assert policy is not None
            self.assertEqual(bool(policy.tunnels), role == "client")
            self.assertEqual(bool(policy.clients), role == "gateway")

    def test_commented_statements(self) -> None:
        """Statements that the samples have commented out are valid once the comment sign is gone."""
        for name in ("client.policy", "gateway.policy"):
            text = (ROOT / "etc" / name).read_text()
            text = re.sub(r"^; (?=\w+ = )", "", text, flags=re.MULTILINE)
            text = text.replace("<public key>", "RVhBTVBMRSBwdWJsaWMga2V5IG9mIGdhdGV3YXkgMi4=")
            load(text, name)
