// The array of PEs written by hand, to judge the generated one: windows move right through a row, each column's pairs
// reach all of its rows, and partial sums leave down one chain a column. Lane l takes one of the five activations from
// position l on, which is what 2:4 and 4:8 need of four lanes and a window of eight.

module pe_by_hand (
  input  logic               clk,
  input  logic               reset,
  input  logic        [63:0] window_in,
  output logic        [63:0] window,
  input  logic        [11:0] index,   // three bits a lane
  input  logic        [19:0] weight,  // five bits a lane, one cycle after the index
  input  logic               val,     // three cycles after the index
  input  logic               last,
  input  logic signed [18:0] chain_in,
  output logic signed [18:0] drain
);
  logic signed [7:0] reach [4][5];
  logic signed [7:0] act [4];
  logic signed [11:0] product [4];  // weights are −15 to 15
  wire signed [12:0] left = product[0] + product[1];
  wire signed [12:0] right = product[2] + product[3];
  logic signed [13:0] total;
  logic signed [18:0] acc;
  wire signed [18:0] next = acc + total;

  for (genvar l = 0; l < 4; l++) begin : lane
    for (genvar i = 0; i < 5; i++) begin : position
      assign reach[l][i] = window[8 * (l + i) +: 8];
    end
    always_ff @(posedge clk) begin
      act[l] <= reach[l][index[3 * l +: 3]];
      product[l] <= act[l] * $signed(weight[5 * l +: 5]);
    end
  end

  always_ff @(posedge clk) begin
    window <= window_in;
    total <= left + right;
    if (reset | (val & last)) acc <= '0;
    else if (val) acc <= next;
    drain <= (val & last) ? next : chain_in;
  end
endmodule

module array_by_hand #(
  parameter int ROWS = 4,
  parameter int COLUMNS = 4
) (
  input  logic                      clk,
  input  logic                      reset,
  input  logic [64 * ROWS - 1:0]    windows,
  input  logic [12 * COLUMNS - 1:0] indices,
  input  logic [20 * COLUMNS - 1:0] weights,
  input  logic [COLUMNS - 1:0]      val,
  input  logic [COLUMNS - 1:0]      last,
  output logic [19 * COLUMNS - 1:0] partials
);
  logic [63:0] window [COLUMNS + 1][ROWS];
  logic signed [18:0] chain [COLUMNS][ROWS + 1];

  for (genvar r = 0; r < ROWS; r++) begin : left
    assign window[0][r] = windows[64 * r +: 64];
  end
  for (genvar c = 0; c < COLUMNS; c++) begin : column
    logic [11:0] index;
    logic [19:0] weight, weight_at_product;
    logic [2:0] val_at, last_at;
    always_ff @(posedge clk) begin
      index <= indices[12 * c +: 12];
      weight <= weights[20 * c +: 20];
      weight_at_product <= weight;
      last_at <= {last_at[1:0], last[c]};
      val_at <= reset ? '0 : {val_at[1:0], val[c]};
    end
    // val and last come with the index, as registers above, and pass three more on their way to the sum.
    logic val_sum, last_sum;
    always_ff @(posedge clk) begin
      val_sum <= ~reset & val_at[2];
      last_sum <= last_at[2];
    end
    assign chain[c][ROWS] = '0;
    assign partials[19 * c +: 19] = chain[c][0];
    for (genvar r = 0; r < ROWS; r++) begin : row
      pe_by_hand pe (
        .clk, .reset,
        .window_in(window[c][r]), .window(window[c + 1][r]),
        .index, .weight(weight_at_product), .val(val_sum), .last(last_sum),
        .chain_in(chain[c][r + 1]), .drain(chain[c][r])
      );
    end
  end
endmodule
