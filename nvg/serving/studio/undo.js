// States of something that is edited, to go back and forth between.

const MOST = 200; // states that are kept

export class History {
  constructor(state) {
    this.states = [state];
    this.at = 0;
  }

  // What was undone before is gone: the new state comes after the current one.
  add(state) {
    this.states.splice(this.at + 1, Infinity, state);
    if (this.states.length > MOST) this.states.shift();
    this.at = this.states.length - 1;
  }

  // The state `steps` further on (-1: undo, 1: redo), undefined where there is none.
  go(steps) {
    const state = this.states[this.at + steps];
    if (state) this.at += steps;
    return state;
  }
}
