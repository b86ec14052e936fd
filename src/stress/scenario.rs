//! Who does what, and on which server.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::Plan;

/// The operator's key of a server of our own that asks for keys. It listens on the loopback alone, and not for long.
const OPERATOR: &str = "the-operator-of-a-stress-test";

/// A kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Conversations: start a turn, read along, wait for its end
    Chat,
    /// Everybody queues prompts on a few threads, takes some back and ends turns
    QueueStorm,
    /// Everybody steers and interrupts the turns that are open
    SteerStorm,
    /// Calls that wait for a decision, and several who decide about each
    Approvals,
    /// Watchers that hang up and come back where they were
    ReconnectStorm,
    /// More threads than may be in memory, touched at random
    EvictionChurn,
    /// Several tenants, one of which floods; each sees its own alone
    Tenants,
    /// Agents that claim and complete the tasks of shared runs
    Board,
}

/// How often a client does what, compared to the rest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    pub start: usize,
    pub queue: usize,
    pub steer: usize,
    pub interrupt: usize,
    pub withdraw: usize,
    pub look: usize,
    /// Reads what is another tenant's.
    pub peek: usize,
    /// One turn in so many waits until it is interrupted; none where it is 0.
    pub held: usize,
    /// Waits for the end of the turns that it started.
    pub awaits: bool,
    pub script: Script,
}

/// What turns do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Script {
    /// A few words.
    #[default]
    Words,
    /// Next to nothing.
    Brief,
    /// Several steps, so that what is said meanwhile is heard.
    Steps,
    /// Calls of tools that somebody has to approve.
    Calls,
}

impl Scenario {
    /// What is the matter in one line.
    pub const fn says(self) -> &'static str {
        match self {
            Self::Chat => "conversations: start a turn, read along, wait for its end",
            Self::QueueStorm => "everybody queues prompts on a few threads, takes some back and ends turns",
            Self::SteerStorm => "everybody steers and interrupts the turns that are open",
            Self::Approvals => "calls that wait for a decision, and several who decide about each",
            Self::ReconnectStorm => "watchers that hang up and come back where they were",
            Self::EvictionChurn => "more threads than may be in memory, touched at random",
            Self::Tenants => "several tenants, one of which floods; each sees its own alone",
            Self::Board => "agents that claim and complete the tasks of shared runs",
        }
    }

    /// As it is written on the command line.
    pub fn word(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// How the client with this number talks.
    pub(super) fn style(self, client: usize) -> Style {
        let chat = Style { start: 6, look: 3, awaits: true, ..Style::default() };
        let storm = Style {
            start: 2,
            queue: 10,
            interrupt: 2,
            withdraw: 3,
            look: 3,
            held: 6,
            script: Script::Brief,
            ..Style::default()
        };
        match self {
            Self::Chat | Self::ReconnectStorm | Self::EvictionChurn => chat,
            Self::QueueStorm => storm,
            Self::SteerStorm => {
                Style { start: 3, steer: 10, interrupt: 2, look: 2, held: 8, script: Script::Steps, ..Style::default() }
            }
            Self::Approvals => Style { start: 6, look: 2, script: Script::Calls, ..chat },
            // The first tenant is the one that floods.
            Self::Tenants if client.is_multiple_of(3) => Style { peek: 1, held: 0, ..storm },
            Self::Tenants => Style { peek: 2, ..chat },
            Self::Board => Style::default(),
        }
    }

    /// How many who watch each of the first threads, and whether they hang up now and then.
    pub(super) const fn watchers(self) -> (usize, bool) {
        match self {
            Self::ReconnectStorm => (6, true),
            _ => (1, false),
        }
    }

    /// How many tenants there are for so many threads.
    pub(super) const fn tenants(self, threads: usize) -> usize {
        let tenants = threads / 4;
        if tenants < 3 {
            3
        } else if tenants > 8 {
            8
        } else {
            tenants
        }
    }

    /// The operator's key, where the server is to ask for keys.
    pub(super) fn operator(self) -> Option<String> {
        (self == Self::Tenants).then(|| OPERATOR.to_owned())
    }

    /// What a server of our own is told.
    pub(super) fn environment(self, plan: &Plan) -> Vec<(&'static str, String)> {
        let text = |text: &str| text.to_owned();
        let mut all = vec![
            ("RADDLE_LISTEN", text("127.0.0.1:0")),
            ("RADDLE_LOG", text("warn")),
            ("RADDLE_SANDBOX_KIND", text("off")),
            ("RADDLE_LIMITS_CONNECTIONS_PER_ADDRESS", text("4096")),
            ("RADDLE_LIMITS_RETRY_BASE_MS", text("20")),
            // However often it is killed: a turn goes on.
            ("RADDLE_LIMITS_RESUMES_WITHOUT_PROGRESS", text("1000000")),
            ("RADDLE_STORE_SYNC_DELAY_MS", plan.disk_latency.as_millis().to_string()),
        ];
        if plan.disk_faults > 0 {
            all.push(("RADDLE_STORE_FAULTS_PER_MILLION", plan.disk_faults.to_string()));
        }
        if self == Self::EvictionChurn {
            all.push(("RADDLE_LIMITS_LOADED_THREADS", (plan.threads / 8).max(2).to_string()));
        }
        all.extend(self.operator().map(|key| ("RADDLE_AUTH_ADMIN_KEY", key)));
        all
    }
}
