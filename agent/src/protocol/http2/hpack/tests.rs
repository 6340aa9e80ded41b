//! Header blocks of other encoders.
