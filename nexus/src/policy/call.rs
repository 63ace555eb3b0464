//! What is decided: a call, and who makes it.

use super::service::Service;
use super::system::DOM0;
use super::token::{Column, Place, Qube, Token, TokenError};
use crate::name::Name;
use std::fmt;

/// Who calls. It is never what the caller says: a qube is known by the domain id of its vchan, a container by the
/// socket that it calls on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Principal {
    /// dom0.
    AdminVm,
    /// A qube itself.
    Qube(Name),
    /// A container in a qube, or in dom0.
    Container {
        /// The qube, or dom0.
        qube: Name,
        /// Its container.
        container: Name,
    },
}

impl Principal {
    /// Reads `dom0`, `QUBE`, `QUBE:CONTAINER` or `dom0:CONTAINER`.
    ///
    /// # Errors
    /// [`TokenError`] for everything else.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        match Token::parse(text, Column::Source)? {
            Token::Place(Place::AdminVm) => Ok(Self::AdminVm),
            Token::Place(Place::Qube(Qube::Name(name))) => Ok(Self::Qube(name)),
            Token::Place(Place::Container { qube, container }) => Ok(Self::Container { qube, container }),
            token => {
                Err(TokenError::Column { token: format!("{token} (as a caller)"), column: Column::Source })
            }
        }
    }

    /// Its qube, or dom0.
    pub fn qube_name(&self) -> &str {
        match self {
            Self::AdminVm => DOM0,
            Self::Qube(qube) | Self::Container { qube, .. } => qube.as_str(),
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AdminVm => f.write_str(DOM0),
            Self::Qube(qube) => qube.fmt(f),
            Self::Container { qube, container } => write!(f, "{qube}:{container}"),
        }
    }
}

/// A call, before it is decided.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Call {
    /// Who calls.
    pub source: Principal,
    /// Whom the caller named, if anybody.
    pub target: Option<Place>,
    /// What it wants.
    pub service: Service,
}
